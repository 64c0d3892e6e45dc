#!/usr/bin/perl
# HTTP/2 as others speak it: nghttp, nghttpd, h2load, nghttpx and curl, and
# many streams with much content at once.
use v5.36;
use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use Test::More;
use Weir;
use Weir::H2;

my $certs = certs();
my $root  = scratch('www', 1);
spew("$root/index.html", "hello\n");
spew("$root/1k", 'k' x 1024);
spew("$root/8m", join '', map { pack 'N', $_ * 2654435761 & 0xffffffff }
    1 .. 2_000_000);

# A program that listens, with a port of its own.
sub server($port, @argv)
{
    my $p = start_process(\@argv);
    wait_for("$argv[0] to listen", sub {
        IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $port);
    });
    return $p;
}

my $tls_port = free_port();
server($tls_port, 'nghttpd', '-d', $root, $tls_port,
    @{ $certs->{good} }{qw(key cert)});
my $h2c_port = free_port();
server($h2c_port, 'nghttpd', '--no-tls', '-d', $root, $h2c_port);

my $w = Weir->start(set => [ "resolve.good.test=127.0.0.1:$tls_port",
    "upstream.upstream_ca=$certs->{ca}{cert}", 'proxy.via=tester',
    "upstream.h2c=127.0.0.1:$h2c_port" ]);
my $at = $w->addr;
my ($port) = $at =~ /:(\d+)/;

# ---- curl
{
    my $r = $w->curl('--http2', '--cacert', $w->ca, 'https://good.test/');
    is $r->{out}, "hello\n", 'curl: interception, h2 to h2';
    is $r->{version}, 2, 'ALPN is mirrored: h2';
    $r = $w->curl('--http1.1', '--cacert', $w->ca, 'https://good.test/');
    is $r->{version}, '1.1', 'a client that wants HTTP/1 has it';
    is $r->{out}, "hello\n", 'from an HTTP/2 origin';
    $r = Weir::curl(undef, '--http2-prior-knowledge', "http://$at/ca.pem");
    like $r->{out}, qr/BEGIN CERT/, 'prior knowledge: our own pages';
    $r = Weir::curl(undef, '--http2-prior-knowledge', '--connect-to',
        "::$at", "http://127.0.0.1:$h2c_port/1k");
    is length $r->{out}, 1024, 'prior knowledge: a proxy request, h2c behind';
    $r = $w->curl('--http2', '--cacert', $w->ca, '-T', "$root/8m",
        'https://good.test/up');
    is $r->{exit}, 0, 'an upload of 8 MB';
    $r = $w->curl('--http2', '--cacert', $w->ca, 'https://good.test/8m');
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        'a download of 8 MB';
    $r = Weir::curl(undef, '--http2', "http://$at/");
    is $r->{version}, '1.1', 'Upgrade: h2c is not taken up';
    is $r->{code}, 200, 'but answered';
}
# ---- nghttp, h2load
{
    my $r = run([ 'nghttp', '-v', "-H:authority: 127.0.0.1:$h2c_port",
        "http://$at/1k" ]);
    like $r->{out}, qr/:status: 200/, 'nghttp: another authority';
    $r = run([ 'nghttp', '-y', '-m', 100, "https://127.0.0.1:$port/" ]);
    like $r->{out}, qr/This is weir/, 'nghttp over TLS: our own page, 100 times';
    $r = run([ 'h2load', '-n', 5000, '-c', 8, '-m', 50,
        "--connect-to=$at", 'https://good.test/1k' ]);
    like $r->{out}, qr/ 5000 succeeded, 0 failed, 0 errored/,
        'h2load: 5000 requests through interception';
    $r = run([ 'h2load', '-n', 200, '-c', 2, '-m', 20, '-d', "$root/1k",
        "--connect-to=$at", 'https://good.test/1k' ]);
    like $r->{out}, qr/ 200 succeeded, 0 failed, 0 errored/,
        'and 200 with content';
}
# ---- nghttpx in front: curl's CONNECT becomes an HTTP/2 CONNECT
{
    my $front = free_port();
    server($front, 'nghttpx', '--conf=/dev/null', '--no-ocsp',
        "--frontend=127.0.0.1,$front;no-tls",
        "--backend=127.0.0.1,$port;;proto=h2;tls", '--http2-proxy',
        '--insecure', '--workers=1', '--errorlog-file=/dev/null',
        '--pid-file=' . scratch('pid'));
    my @by = ('-x', "http://127.0.0.1:$front", '--cacert', $w->ca);
    my $r = Weir::curl(undef, @by, '--http1.1', 'https://good.test/8m');
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        'CONNECT on a stream, interception inside, HTTP/1 in it';
    $r = Weir::curl(undef, @by, '--http2', 'https://good.test/8m');
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        'and HTTP/2 in it';
    my $plain = origin(sub ($c) {
        while (my $r = $c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: "
                    . length($r->{body}) . "\r\n\r\n$r->{body}");
        }
    });
    $r = Weir::curl(undef, @by, '-p', '--data-binary', "\@$root/8m",
        'http://' . $plain->addr . '/');
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        '8 MB up and down in a tunnel';
    $r = Weir::curl(undef, @by, 'http://' . $plain->addr . '/', '-d', 'x=1');
    is $r->{out}, 'x=1', 'a request to the https:// proxy in HTTP/2';
}
# ---- curl, in HTTP/2 to an https:// proxy
{
    my @ca = ('--cacert', $w->ca);
    my $r = $w->curl_h2(@ca, '--http2', 'https://good.test/8m');
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        'curl --proxy-http2: CONNECT, HTTP/2 inside';
    is $r->{version}, 2, '  by ALPN';
    $r = $w->curl_h2(@ca, '--http1.1', '-T', "$root/8m",
        'https://good.test/up');
    is $r->{exit}, 0, '  an upload of 8 MB, HTTP/1 inside';
    $r = $w->curl_h2('-p', "http://127.0.0.1:$h2c_port/1k",
        '--http2-prior-knowledge');
    is length $r->{out}, 1024, '  CONNECT to what is no TLS';
    my $echo = origin(sub ($c) {
        while (my $r = $c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: "
                    . length($r->{body}) . "\r\n\r\n$r->{body}");
        }
    });
    $r = $w->curl_h2('--data-binary', "\@$root/8m", 'http://' . $echo->addr);
    is sha256_hex($r->{out}), sha256_hex(slurp("$root/8m")),
        '  a request, 8 MB up and down';
    $r = $w->curl_h2('http://127.0.0.1:' . closed_port() . '/');
    is $r->{code}, 502, '  an origin that refuses';
    $r = $w->curl_h2(@ca, 'https://127.0.0.1:' . closed_port() . '/');
    is $r->{exit}, 56, '  and a CONNECT to one';
    my $many = scratch('many', 1);
    $r = $w->curl_h2(@ca, '-Z', '--parallel-max', 50, '-o', "$many/#1",
        'https://good.test/1k?[1-200]');
    is $r->{exit}, 0, '  200 at once';
    is scalar(grep { -s == 1024 } glob "$many/*"), 200, '  all of them whole';
    $r = $w->curl_h2(@ca, '-Z', '--parallel-max', 20, '-o', "$many/a#1",
        'http://' . $echo->addr . '/[1-40]', '--data-binary', "\@$root/1k");
    is scalar(grep { -s == 1024 } glob "$many/a*"), 40,
        '  40 requests with content';
}
# ---- much at once: 50 streams echo 640 KiB each, one of them is paused
{
    my $l = origin(sub ($c) {
        my $head = $c->get_head;
        $c->put("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while (1) {
            my $line = $c->get_until(qr/\r\n/);
            my $n = hex $line =~ s/\s//gr;
            $c->put($line . $c->get($n + 2));
            last if $n == 0;
        }
    });
    my $c = Weir::H2->client($w->client,
        settings => Weir::H2::setting(4, 1_000_000));
    $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 0x7fff0000 - 65535);
    my @id = map { $c->request([ Weir::H2::get($l->addr, '/', 'POST') ],
        end => 0) } 1 .. 50;
    my $paused = shift @id;
    $c->data($paused, 'p' x 10_000);
    my $size = 40 * 16384; # over its window, by what is given back
    my (%sum, %sent, %window);
    $window{$_} = 262_144 for @id, 0;
    $window{0} = 65_535 - 10_000;
    my $chunk = 0;
    my $given = sub ($f) {
        die 'the connection has ended: ', $c->{goaway} // $c->{wire}->how,
            "\n", $w->log if !$f;
        return if $f->{type} ne 'WINDOW_UPDATE';
        $window{ $f->{id} } += unpack 'N', $f->{payload};
    };
    while (grep { ($sent{$_} // 0) < $size } @id) {
        my $moved = 0;
        for my $id (grep { ($sent{$_} // 0) < $size } @id) {
            next if $window{$id} < 16384 || $window{0} < 16384;
            my $bytes = pack('N', $id * 1000 + $chunk++ % 997) x 4096;
            $sum{$id} .= $bytes;
            $window{$_} -= 16384 for $id, 0;
            $sent{$id} += 16384;
            $c->data($id, $bytes, $sent{$id} == $size);
            $moved = 1;
        }
        $given->($c->get_frame) if !$moved;
        $given->($c->get_frame) while !$c->{wire}->silent(0);
    }
    my $same = grep { my $s = $c->answer($_);
        sha256_hex($s->{body}) eq sha256_hex($sum{$_}) } @id;
    is $same, 49, '32 MiB up and down on 49 streams, all as it was sent';
    $c->data($paused, 'q', 1);
    is $c->answer($paused)->{body}, 'p' x 10_000 . 'q',
        'and the one that was paused in between';
}
$w->stop;
done_testing;
