#!/usr/bin/perl
# HTTP/3 with clients that have trouble, and that make it: losses, other
# addresses, new keys, forged and forgotten connections, crowds.  gtlsclient is
# ngtcp2's.
use v5.36;
use lib 't/lib';
use Digest::SHA;
use IO::Socket::IP;
use Test::More;
use Time::HiRes qw(time);
use Ways;
use Weir;
use Weir::H3;

use constant BIG => 20_000_000;

my $certs = certs();
my $home  = scratch('home', 1); # one CA for all
my @set   = ("upstream.upstream_ca=$certs->{ca}{cert}",
    'resolve.b.good.test=127.0.0.1', 'upstream.reuse_per_origin=100');
my $w = Weir->start(home => $home, set => \@set, args => ['-v']);

sub client($weir = $w, %o)
{
    return Weir::H3->client(port => $weir->port, sni => 'localhost', %o);
}

my $big = join '', map { pack 'N', $_ } 1 .. BIG / 4;

sub serve($c)
{
    while (my $r = $c->get_request) {
        my $body = $r->{target} =~ /big/ ? $big
            : $r->{target} =~ /sum/ ? Digest::SHA::sha256_hex($r->{body}) : 'ok';
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
            . "\r\n\r\n$body") or return;
    }
}
my $plain = origin(\&serve);
my $tls   = origin(\&serve, tls => $certs->{good});
my $http  = 'http://' . $plain->addr;
my $https = 'https://b.good.test:' . $tls->port;

sub get($path, $authority = $plain->addr)
{
    return Weir::H2::get($authority, $path);
}

# Does this connection serve?
sub alive($c)
{
    return $c->answer($c->request([ get('/small') ]))->{body} eq 'ok';
}

# ---- gtlsclient
{
    my $r = gtlsclient($w->port, 'localhost', [ "$http/big", "$https/small" ]);
    ok slurp("$r->{dir}/big") eq $big, 'a forward proxy: 20 MB in the clear';
    is slurp("$r->{dir}/small"), 'ok', 'and an https origin';
    $r = gtlsclient($w->port, 'b.good.test', ["$https/big"]);
    ok slurp("$r->{dir}/big") eq $big, 'intercepted: 20 MB';
    my $file = spew(scratch('up'), $big);
    $r = gtlsclient($w->port, 'localhost', ["$http/sum"], "--data=$file",
        '--http-method=POST');
    is slurp("$r->{dir}/sum"), Digest::SHA::sha256_hex($big), '20 MB up';
    $r = gtlsclient($w->port, 'localhost', [ ("$http/small") x 3 ],
        '--nstreams=100');
    my $n;
    my $all = eval {
        wait_for('100 lines', sub {
            $n = () = $w->log =~ m{ target=\Q$http\E/small status=200 }g;
            return $n == 100;
        });
    };
    is $n, 100, '100 requests on one connection';
}
my $only = '--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:';
for my $case (
    ['5 % lost both ways', '--tx-loss=0.05', '--rx-loss=0.05'],
    ['another address in the middle', '--change-local-addr=30ms'],
    ['new keys', '--key-update=30ms'],
    ['AES-256', "$only+AES-256-GCM"],
    ['ChaCha20', "$only+CHACHA20-POLY1305"],
    ['P-384', '--groups=-GROUP-ALL:+GROUP-SECP384R1'],
    ['small packets', '--max-udp-payload-size=1200', '--no-pmtud'],
    ['QUIC 2', '--version=0x6b3343cf'],
    ['small windows', '--max-data=20000', '--max-stream-data-bidi-local=10000'],
) {
    my ($what, @args) = @$case;
    my $r = gtlsclient($w->port, 'localhost', ["$http/big"], @args);
    ok slurp("$r->{dir}/big") eq $big, "gtlsclient, $what" or diag $r->{err};
}
# Downwards a client whose port changes has nothing to say, and is not found.
for my $case (
    ['5 % lost both ways', '--tx-loss=0.05', '--rx-loss=0.05'],
    ['another port behind a NAT', '--change-local-addr=30ms', '--nat-rebinding'],
) {
    my ($what, @args) = @$case;
    my $file = spew(scratch('up'), $big);
    my $r = gtlsclient($w->port, 'localhost', ["$http/sum"], "--data=$file",
        '--http-method=POST', @args);
    is slurp("$r->{dir}/sum"), Digest::SHA::sha256_hex($big),
        "gtlsclient, 20 MB up, $what";
}
{
    my @keep = map { '--' . $_ . '-file=' . scratch($_) } qw(session tp token);
    for my $n (1, 2) {
        my $r = gtlsclient($w->port, 'localhost', ["$http/small"], @keep,
            '--wait-for-ticket');
        is slurp("$r->{dir}/small"), 'ok', "gtlsclient, session $n";
    }
}

# ---- what stays when addresses and keys change
for my $what ('migrate', 'rebind', 'update') {
    my $c = client();
    my $id = $c->request([ get('/big') ]);
    my $s = $c->stream($id);
    my $sum = Digest::SHA->new(256);
    $s->{sink} = sub ($bytes) { $sum->add($bytes) };
    $c->until(sub { ($s->{n_body} // 0) > BIG / 5 });
    $c->tell($what);
    $c->answer($id);
    is $sum->hexdigest, Digest::SHA::sha256_hex($big),
        "a download through one: $what" or diag "$c->{gone} $c->{code}";
    ok $c->until(sub { $c->{path} }) && $c->{path}[0], 'the new path is valid'
        if $what eq 'migrate';
    ok alive($c), 'and on';
    $c->close;
}
{
    my $c = client();
    ok alive($c), 'a client that has got further identifiers';
    my $n = grep { $c->tell('migrate'); alive($c) } 1 .. 5;
    is $n, 5, 'one new address behind the other' or diag $c->{code};
    $c->close;
}
{
    my $file = scratch('session');
    for my $n (0, 1) {
        my $c = client($w, wire => { session => $file });
        is $c->{resumed}, $n, $n ? 'is taken up' : 'a session';
        $c->until(sub { $c->{ticket} });
        ok alive($c), 'and serves';
    }
}

# ---- versions
{
    my $c = client($w, wire => { version => 0x1a2a3a4a });
    wait_for('versions', sub { Weir::H3::pump(time + 0.1); $c->{versions} });
    ok((grep { $_ eq '1' } $c->{versions}->@*),
        'an unknown version is told those that are spoken');
    my $udp = IO::Socket::IP->new(PeerHost => '127.0.0.1',
        PeerPort => $w->port, Proto => 'udp', Type => Socket::SOCK_DGRAM());
    my $long = pack 'CNCa8Ca8', 0xc0, 0x1a2a3a4a, 8, 'abcdefgh', 8, 'ijklmnop';
    for my $case ([ 'a short datagram', 1199, 0 ], [ 'a long one', 1200, 1 ]) {
        my ($what, $len, $n) = @$case;
        $udp->send($long . "\0" x ($len - length $long));
        my $set = '';
        vec($set, fileno $udp, 1) = 1;
        my $came = select $set, undef, undef, $n ? LIMIT : 0.3;
        is $came, $n, "$what of an unknown version: " . ($n ? 'answered' : 'not');
    }
    $udp->recv(my $answer, 2000);
    is substr($answer, 1, 4), "\0" x 4, 'by version negotiation';
    my $ids = "\xff" . 'd' x 255 . "\xff" . 's' x 255; # RFC 9000 section 17.2
    $udp->send(pack('CN', 0xc0, 0x1a2a3a4a) . $ids . "\0" x 700);
    my $set = '';
    vec($set, fileno $udp, 1) = 1;
    select $set, undef, undef, LIMIT;
    $udp->recv($answer, 2000);
    is substr($answer, 5, 512), "\xff" . 's' x 255 . "\xff" . 'd' x 255,
        'to identifiers of any length';
    # what is nobody's, and what is nothing
    $udp->send($_) for '', 'x', "\x40" . 'y' x 20, "\xff" x 1200, "\0" x 1500,
        'z' x 60_000;
    ok alive(client()), 'rubbish does no harm';
}

# ---- addresses are proved
{
    my $strict = Weir->start(home => $home, set => [ @set,
        'http3.retry=always' ]);
    my $c = client($strict);
    ok $c->{up} && $c->{retried}, 'retry = always: a Retry comes first';
    ok alive($c), 'then it serves';
    ok defined $c->until(sub { $c->{token} }), 'a token for the next time';
    my $next = client($strict, wire => { token => unpack 'H*', $c->{token} });
    ok $next->{up} && !$next->{retried}, 'with it there is no Retry';
    ok alive($next), 'and it serves';
    $next = client($strict, wire => { token => '00' x 40 });
    ok !$next->{up} || $next->{retried}, 'a forged token proves nothing';
    $strict->stop;
    my $never = Weir->start(home => $home, set => [ @set, 'http3.retry=never' ]);
    ok !client($never)->{retried}, 'retry = never: none';
    $never->stop;
    my $auto = Weir->start(home => $home, set => [ @set, 'http3.retry=auto',
        'http3.half_open=8' ]);
    ok !client($auto)->{retried}, 'retry = auto: none in quiet times';
    my @half = map { client($auto, wait => 0, wire => { lossy_rx => 100 }) }
        1 .. 8;
    my $retried = wait_for('a Retry', sub {
        my $one = client($auto);
        return $one->{up} && $one->{retried};
    });
    ok $retried, 'with half open connections there is one';
    $_->tell('abandon') for @half;
    $auto->stop;
}
{ # at most three times what a client without a proof has sent
    my $relay = IO::Socket::IP->new(LocalHost => '127.0.0.1', Proto => 'udp',
        Type => Socket::SOCK_DGRAM()) or die "relay: $@";
    my $up = IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $w->port,
        Proto => 'udp', Type => Socket::SOCK_DGRAM()) or die "relay: $@";
    my $c = Weir::H3->client(port => $relay->sockport, sni => 'localhost',
        wait => 0);
    my $set = '';
    vec($set, fileno $relay, 1) = 1;
    select $set, undef, undef, LIMIT;
    $relay->recv(my $first, 65535);
    $up->send($first);
    my ($n, $until) = (0, time + 1.5);
    while ((my $left = $until - time) > 0) {
        $set = '';
        vec($set, fileno $up, 1) = 1;
        last if !select $set, undef, undef, $left;
        $up->recv(my $some, 65535) // last;
        $n += length $some;
    }
    ok $n > 0, 'an answer to the first datagram alone';
    cmp_ok $n, '<=', 3 * length $first, 'at most three times as long';
    $c->tell('abandon');
}

# ---- weir starts again: connections that it knows no more
{
    my $port = free_udp_port();
    my $was = Weir->start(home => $home, set => \@set,
        listen => "127.0.0.1:$port");
    my $c = client($was);
    ok alive($c), 'a connection';
    $was->signal('KILL');
    reap($was);
    $was = Weir->start(home => $home, set => \@set,
        listen => "127.0.0.1:$port");
    $c->request([ get('/small') ]);
    is $c->ending, 'reset 0', 'after a restart: a stateless reset';
    ok alive(client($was)), 'and a new connection';
    $was->stop;
}

# ---- crowds
{ # content that nobody reads
    my $c = client();
    $c->settled;
    my $n = 0;
    my $refused = closed_port();
    for my $round (1 .. 60) {
        my @id = map {
            my $id = $c->request([ Weir::H2::get("127.0.0.1:$refused", '/',
                'POST') ], end => 0);
            $c->data($id, 'x' x 20_000);
            $id;
        } 1 .. 50;
        $n += grep { ($c->answer($_)->{status} // 0) == 502 } @id;
    }
    is $n, 3000, '3000 requests whose content is not read, on one connection';
    ok alive($c), 'which goes on';
    $c->close;
}
{ # gone in the middle
    for (1 .. 8) {
        my $c = client($w, wire => { window => 200_000 });
        $c->request([ get('/big') ]) for 1 .. 2;
        $c->until(sub { ($c->{n_in} // 0) > 100_000 });
        $c->tell('abandon');
    }
    ok alive(client()), 'clients that vanish in the middle leave others alone';
}
{ # 2000, 50 at a time
    my ($done, $failed, @open) = (0, 0);
    my $from = time;
    while ($done < 2000) {
        while (@open < 50 && $done + @open < 2000) {
            push @open, [ client($w, wait => 0) ];
        }
        Weir::H3::pump(time + LIMIT) or last;
        my @left;
        for my $one (@open) {
            my ($c, $id) = @$one;
            if (!defined $id && $c->{up}) {
                # the first stream of a client is number 0
                Weir::H3::command("open $c->{id} bidi");
                $c->put($one->[1] = 0, 'HEADERS',
                    Weir::H3::qpack(get('/small')), 1);
            }
            my $s = $c->stream(0);
            if ($s->{end} || $c->{gone}) {
                $done++;
                $failed++ if $s->{body} ne 'ok';
                $c->close if !$c->{gone};
            } else {
                push @left, $one;
            }
        }
        @open = @left;
    }
    is $done, 2000, '2000 connections, 50 at a time';
    is $failed, 0, 'each is served';
    note sprintf '%.0f/s', 2000 / (time - $from);
}
{ # 200 that are idle
    my $many = Weir->start(home => $home, set => [ @set, 'proxy.workers=16' ]);
    my @idle;
    for (1 .. 10) {
        my @more = map { client($many, wait => 0) } 1 .. 20;
        Weir::H3::wait_until(sub { !grep { !$_->{up} } @more });
        push @idle, @more;
    }
    is scalar(grep { $_->{up} } @idle), 200, '200 connections with 16 workers';
    ok alive($_), 'one serves' for @idle[ 0, 199 ];
    wait_for('rest', sub { $many->status('Threads') < 60 });
    pass 'those that are idle hold no thread';
    my $used = $many->status('VmRSS');
    cmp_ok $used, '<', 100 * 1024, "they cost less than 100 MiB (now $used KiB)"
        if $ENV{WEIR} !~ /asan|tsan/;
    $_->close for @idle;
    $many->stop;
}
$w->stop;
done_testing;
