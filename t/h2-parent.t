#!/usr/bin/perl
# Parents that speak HTTP/2, real ones: nghttpx and weir itself.
use v5.36;
use Digest::MD5 qw(md5_hex);
use Test::More;
use Weir;
use Ways;

my $certs = certs();
my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
my $tls   = origin(sub ($c) { $c->put($hello) while $c->get_request },
    tls => $certs->{good});
my $http  = 'http://127.0.0.1:' . $plain->port;
my $https = 'https://127.0.0.1:' . $tls->port;
my $ca    = $certs->{ca}{cert};
my @set   = ("upstream.upstream_ca=$ca", "upstream.parent_ca=$ca",
    'upstream.breaker=no', 'proxy.grace_s=1', 'log.level=debug');
my $home = scratch('home', 1);

sub weir(@more)
{
    return Weir->start(home => $home, set => [ @set, @more ]);
}

# ---- real ones: nghttpx, and weir itself
my $far  = Weir->start(home => scratch('home', 1), set => [ @set,
    'proxy.users=in:side', 'intercept.enable=no' ]);
my $back = Weir->start(home => scratch('home', 1), set => [ @set,
    'intercept.enable=no' ]);
my $nx   = nghttpx($back->port, '--backend-connections-per-host=100');
my $both = spew(scratch('both'), slurp($ca) . slurp($far->ca));
my $docs = scratch('docs', 1);
my $front = free_port();
my $nghttpd = start_process([ 'nghttpd', '-d', $docs, $front,
    $certs->{good}{key}, $certs->{good}{cert} ]);
my $big = join '', map { pack 'N', $_ * 2654435761 & 0xffffffff } 1 .. 1_000_000;
spew("$docs/page", 'over HTTP/2');
spew("$docs/big", $big);
wait_for('nghttpd', sub {
    IO::Socket::IP->new(PeerHost => '127.0.0.1', PeerPort => $front) });
my $ws = origin(sub ($c) {
    $c->get_request or return;
    $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\n\r\n\x81\2hi");
    $c->put($c->get_some) for 1 .. 3;
}, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });

for ([ 'nghttpx', "https://127.0.0.1:$nx->{port}" ],
    [ 'weir', 'https://in:side@' . $far->addr ]) {
    my ($name, $url) = @$_;
    for my $intercept ('yes', 'no') {
        my $n = "$name, interception $intercept";
        my $w = weir("upstream.parent=$url", "intercept.enable=$intercept",
            "upstream.parent_ca=$both");
        my @ca = ('--cacert', $intercept eq 'yes' ? $w->ca : $ca);
        my $r = curl($w, "$http/1", "$http/2");
        is $r->{out}, 'hellohello', "$n: plain" or diag $r->{err};
        like $w->wait_log(qr/ exchange /), qr{origin_version=http/2 parent=https},
            'as requests in HTTP/2';
        $r = curl($w, @ca, "$https/1", "$https/2");
        is $r->{out}, 'hellohello', "$n: https" or diag $r->{err};
        $r = curl($w, '-p', "$http/3");
        is $r->{out}, 'hello', "$n: plain in a tunnel" or diag $r->{err};
        $r = curl(undef, '--socks5-hostname', $w->addr, @ca, "$https/");
        is $r->{out}, 'hello', "$n: SOCKS" or diag $r->{err};
        $r = curl($w, '--http2', @ca, ("https://127.0.0.1:$front/page") x 2);
        is $r->{out}, 'over HTTP/2' x 2, "$n: an HTTP/2 origin" or diag $r->{err};
        is $r->{version}, 2, 'in HTTP/2';
        $r = curl($w, ($intercept eq 'yes' ? '--http1.1' : '--http2'), @ca,
            "https://127.0.0.1:$front/big");
        is md5_hex($r->{out}), md5_hex($big), "$n: 4 MB down" or diag $r->{err};
        my $c = $w->client;
        $c->connect('localhost:' . $ws->port);
        ok $c->tls_client(sni => 'localhost', ca => $ca[1]), "$n: wss"
            or diag $c->{error};
        $c->put("GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade"
            . "\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"
            . "Sec-WebSocket-Version: 13\r\n\r\n");
        is $c->get_answer->{status}, 101, 'switches';
        is $c->get(4), "\x81\2hi", 'frames come down';
        $c->put("\x81\x84abcd----");
        is $c->get(10), "\x81\x84abcd----", 'and go up';
        $c->close;
        like $w->wait_log(qr/parent_answer_ms=/),
            qr/parent_connect_ms=[\d.]+ parent_answer_ms=[\d.]+/, 'with times';
        unlike $w->log, qr/side|aW46/, "$n: no password in the log";
        $w->stop($n);
        my @sessions = $w->log =~ /(session origin=.*)/g;
        is scalar @sessions, $intercept eq 'yes' ? 2 : 1,
            "$n: all on one connection, and one to an origin inside it"
            or diag join "\n", @sessions;
    }
}
{ # bulk both ways through an opaque tunnel, and ends one by one
    my $l = listener();
    my $w = weir('upstream.parent=https://in:side@' . $far->addr,
        "upstream.parent_ca=$both", 'intercept.enable=no');
    my $c = $w->client;
    $c->put('CONNECT ' . $l->addr . " HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'a tunnel';
    my $child = fork // die;
    if (!$child) {
        $c->put($big);
        $c->shut;
        POSIX::_exit(0);
    }
    is md5_hex($s->get_eof), md5_hex($big), '4 MB up, and the end of it';
    waitpid $child, 0;
    $s->put('and now down');
    is $c->get(12), 'and now down', 'half closed';
    $s->close;
    is $c->get_eof, '', 'the other end';
    is $c->how, 'eof', 'as an end';
    $w->stop;
}
{ # many at once
    my $w = weir("upstream.parent=https://127.0.0.1:$nx->{port}",
        'intercept.enable=no');
    my $l = listener();
    my @c = map {
        my $c = $w->client;
        $c->put('CONNECT ' . $l->addr . " HTTP/1.1\r\nHost: x\r\n\r\n");
        $c;
    } 1 .. 30;
    is $_->get_answer(connect => 1)->{status} + 0, 200, 'one of thirty' for @c;
    my @s = map { $l->accept } @c;
    $_->put('x' x 1000) for @s;
    is length $_->get(1000), 1000, 'carries' for @c;
    $_->close for @c;
    is $_->get_eof, '', 'ends' for @s;
    $w->stop;
    my @sessions = $w->log =~ /session origin=.* streams=(\d+)/g;
    is "@sessions", '30', 'on one connection, though all came at once';
}
$_->stop for $far, $back;
stop_process($nghttpd);

done_testing;
