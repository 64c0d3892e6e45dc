#!/usr/bin/perl
# The first start in a fresh home, the second one, two at once; what it says;
# what it serves itself; what keeps it from starting.
use v5.36;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);
use Test::More;
use Weir;

sub mode($file) { sprintf '%04o', (stat $file)[2] & 07777 }

# ---- the first start
my $home = scratch('home', 1);
my $w    = Weir->start(home => $home, args => []);
my $dir  = "$home/.weir";
my ($fingerprint) = run([ qw(openssl x509 -noout -fingerprint -sha256 -in),
    "$dir/ca.pem" ])->{out};
{
    is mode($dir), '0700', '~/.weir is ours alone';
    is mode("$dir/ca-key.pem"), '0600', 'its key too';
    ok -r "$dir/$_", "$_ is there" for qw(ca.pem ca.cer bundle.pem);
    my $der = run([ qw(openssl x509 -inform DER -noout -fingerprint -sha256
        -in), "$dir/ca.cer" ])->{out};
    is $der, $fingerprint, 'ca.cer is the same certificate as ca.pem';
    my $text = run([ qw(openssl x509 -noout -text -in), "$dir/ca.pem" ])->{out};
    like $text, qr/NIST CURVE: P-256/, 'P-256';
    like $text, qr/Basic Constraints: critical\s*\n\s*CA:TRUE/, 'a CA';
    like $text, qr/Certificate Sign/, 'that may sign certificates';
    like $text, qr/Subject Key Identifier/, 'with an SKI';
    is run([ qw(openssl verify -CAfile), ("$dir/ca.pem") x 2 ])->{exit}, 0,
        'and verifies';
    my ($from, $to) = map {
        my $v = run([ 'openssl', 'x509', '-noout', $_, '-in', "$dir/ca.pem" ])
            ->{out} =~ s/.*=//r;
        chomp $v;
        run([ 'date', '-d', $v, '+%s' ])->{out}
    } '-startdate', '-enddate';
    my $days = (time - $from) / 86400;
    cmp_ok abs($days - 2), '<', 0.1, 'backdated by 2 days';
    cmp_ok abs(($to - time) / 86400 - 3652), '<', 5, 'for 10 years';
    my $bundle = slurp("$dir/bundle.pem");
    my $ca     = slurp("$dir/ca.pem");
    $ca =~ s/.*(?=-----BEGIN)//s;
    ok index($bundle, $ca) >= 0, 'bundle.pem has our CA';
    my $n = () = $bundle =~ /BEGIN CERTIFICATE/g;
    my $system = () = slurp('/etc/ssl/certs/ca-certificates.crt')
        =~ /BEGIN CERTIFICATE/g;
    cmp_ok $n, '>=', $system + 1, 'and the system\'s roots';
}

# ---- what it says
{
    my $out = $w->out;
    my $addr = $w->addr;
    like $out, qr/\A.*\blistens on \Q$addr\E\b/, 'where to point a client';
    like $out, qr/\Q$dir\E\/ca\.pem/, 'the CA file';
    my ($line) = $out =~ /^\s*(curl .*)$/m;
    ok $line, 'a curl line';
    like $line // '', qr/\Q$addr\E/, 'that goes through it';
    # the line as printed, to an origin of ours instead
    my $certs = certs();
    my $o = origin(sub ($c) {
        while ($c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfound");
        }
    }, tls => $certs->{good});
    my $try = $line =~ s{https?://[\w.]+/?(?=\s*$)}{https://localhost:${\ $o->port}/}r;
    isnt $try, $line, 'to some page';
    my $v = Weir->start(home => $home, set =>
            ["upstream.upstream_ca=$certs->{ca}{cert}"]);
    $try =~ s/\Q$addr\E/$v->addr/ge;
    my $r = run([ 'sh', '-c', $try ], env => { HOME => $home });
    like $r->{out}, qr/found/, 'which works as it is printed' or
        diag $try, explain $r;
    $v->stop;
}

# ---- what it serves itself
{
    my $addr = $w->addr;
    for my $ask (
        [ 'its address, direct', undef, "http://$addr" ],
        [ 'its address, through it', $w, "http://$addr" ],
        [ 'weir.invalid, through it', $w, 'http://weir.invalid' ],
        [ 'localhost, direct', undef, "http://localhost:${\ $w->port}" ],
    ) {
        my ($name, $via, $url) = @$ask;
        my $r = curl($via, '-H', 'Accept: text/html', "$url/");
        is $r->{code}, 200, "$name: a page";
        like $r->{out}, qr/weir/i, "$name: that says what this is";
        like $r->{out}, qr/\Q$addr\E|proxy/i, "$name: how to set the proxy";
        like $r->{out}, qr/ca\.pem/, "$name: and offers the CA";
        is curl($via, "$url/ca.pem")->{out}, slurp("$dir/ca.pem"),
            "$name: /ca.pem";
        is curl($via, "$url/ca.cer")->{out}, slurp("$dir/ca.cer"),
            "$name: /ca.cer";
        is curl($via, "$url/other")->{code}, 404, "$name: nothing else";
        is curl($via, '-I', "$url/ca.pem")->{code}, 200, "$name: HEAD";
        is curl($via, '-d', 'x=y', "$url/")->{code}, 405, "$name: no POST";
    }
    my $r = curl($w, '--cacert', "$dir/ca.pem", 'https://weir.invalid/');
    is $r->{code}, 200, 'https://weir.invalid through it';
    like $r->{out}, qr/weir/, 'is the page, too';
    like curl(undef, '-I', "http://$addr/ca.cer")->{out},
        qr{^Content-Type: application/(?:x-x509-ca-cert|pkix-cert)}mi,
        'ca.cer has the type that makes systems import it';
}
$w->stop;

# ---- the second start
{
    my $before = join ' ', map { (stat "$dir/$_")[9] } qw(ca.pem ca-key.pem);
    my $v = Weir->start(home => $home);
    is run([ qw(openssl x509 -noout -fingerprint -sha256 -in),
        "$dir/ca.pem" ])->{out}, $fingerprint, 'the second start keeps the CA';
    is join(' ', map { (stat "$dir/$_")[9] } qw(ca.pem ca-key.pem)), $before,
        'and does not write it again';
    $v->stop;
}

# ---- several first starts at once
{
    my $fresh = scratch('home', 1);
    my @p = map {
        start_process([ Weir::binary(), Weir::weir_sets(), '--set',
            'proxy.listen=127.0.0.1:0' ], cd => $fresh,
            env => { HOME => $fresh })
    } 1 .. 4;
    my %seen;
    for my $p (@p) {
        wait_for('each of them to listen',
            sub { slurp($p->{out}) =~ /listens on \S+:(\d+)/ && $1 })
            =~ /(\d+)/;
        my ($port) = slurp($p->{out}) =~ /listens on \S+:(\d+)/;
        $seen{ curl(undef, "http://127.0.0.1:$port/ca.pem")->{out} }++;
    }
    is scalar(keys %seen), 1, 'four at once have one CA';
    is((keys %seen)[0], slurp("$fresh/.weir/ca.pem"), 'the one in the file');
    is stop_process($_), 0, 'one of the four ends' for @p;
}

# ---- what keeps it from starting
sub refuses($name, $re, %o)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $r = weir_run($o{args} // [ '--set', 'proxy.listen=127.0.0.1:0' ], %o);
    is $r->{exit}, 1, "$name: exit 1" or diag explain $r;
    like $r->{err}, $re, "$name: and why";
    is $r->{out}, '', "$name: nothing on standard output";
}
{
    for my $bad (0644, 0640, 0604) {
        chmod $bad, "$dir/ca-key.pem";
        refuses(sprintf('a key with mode %o', $bad), qr/ca-key\.pem/,
            home => $home);
    }
    chmod 0600, "$dir/ca-key.pem";
    my $key = slurp("$dir/ca-key.pem");
    spew("$dir/ca-key.pem", 'nonsense');
    refuses('a key that is none', qr/ca-key\.pem/, home => $home);
    spew("$dir/ca-key.pem", slurp(certs()->{good}{key}));
    refuses('a key of another certificate', qr/ca-key\.pem|ca\.pem|match/,
        home => $home);
    spew("$dir/ca-key.pem", $key);
    unlink "$dir/ca-key.pem.old";
    Weir->start(home => $home)->stop('with its own key again, weir');
}
{
    my $l = listener();
    refuses('a port that is taken', qr/\Q${\ $l->addr}\E.*another process/is,
        args => [ '--set', 'proxy.listen=' . $l->addr ]);
    refuses('an address that is not ours', qr/192\.0\.2\.1:0?/,
        args => [ '--set', 'proxy.listen=192.0.2.1:0' ]);
    my $v = Weir->start;
    refuses('a second weir on the same port', qr/\Q${\ $v->addr}\E/,
        args => [ '--set', 'proxy.listen=' . $v->addr ]);
    $v->stop;
}
{
    refuses('a home that is not there', qr{/nowhere},
        env => { HOME => '/nowhere/at/all' }) if $> != 0;
    my $file = spew(scratch('file'), 'x');
    refuses('a CA directory that is a file', qr/\Q$file\E/,
        args => [ '--set', 'proxy.listen=127.0.0.1:0', '--set',
            "intercept.dir=$file" ]);
    refuses('a log file that cannot be written', qr{/nowhere/log},
        args => [ '--set', 'proxy.listen=127.0.0.1:0', '--set',
            'log.file=/nowhere/log' ]);
}
{ # a directory of one's own
    my $own = scratch('ca');
    my $v   = Weir->start(set => ["intercept.dir=$own"]);
    ok -r "$own/ca.pem", 'intercept.dir is made where it is wanted';
    ok !-e $v->home . '/.weir', 'and nowhere else';
    $v->stop;
}

# ---- several addresses
{
    my $v = Weir->start(listen => '127.0.0.1:0, 127.0.0.2:0');
    my @at = $v->out =~ /(127\.0\.0\.[12]:\d+)/g;
    my %at = map { $_ => 1 } @at;
    is scalar(keys %at), 2, 'two addresses are told';
    is curl(undef, "http://$_/")->{code}, 200, "$_ answers" for sort keys %at;
    $v->stop;
}

# ---- sd_notify(3)
for my $kind ('a path', 'an abstract name') {
    my $path = $kind eq 'a path' ? scratch('notify') : "\0weir-test-$$";
    my $sock = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $path)
        or die "notify: $!";
    my $v = Weir->start(env => { NOTIFY_SOCKET => $path =~ s/^\0/@/r });
    my $set = '';
    vec($set, fileno $sock, 1) = 1;
    ok select($set, undef, undef, LIMIT) > 0, "$kind: systemd is told";
    $sock->recv(my $text, 4096);
    like $text, qr/^READY=1$/m, "$kind: READY=1";
    $v->stop;
    $sock->recv($text, 4096);
    like $text, qr/^STOPPING=1$/m, "$kind: and STOPPING=1 at the end";
}

done_testing;
