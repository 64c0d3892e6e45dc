#!/usr/bin/perl
# SOCKS 4, 4a and 5 on the same port: real clients, raw bytes, users, truthful
# replies, what follows, and UDP.  RFC 1928, RFC 1929.
use v5.36;
use Socket qw(inet_aton inet_ntoa inet_pton AF_INET6 SOCK_DGRAM);
use Test::More;
use Time::HiRes qw(time);
use POSIX ();
use Weir;
use Weir::H2;
use Weir::H3;
use Ways;

my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
my $plain = origin(sub ($c) { $c->put($hello) while $c->get_request });
my $tls   = origin(sub ($c) { $c->put($hello) while $c->get_request },
    tls => certs()->{good});
my $dead = closed_port();
my @set  = ('upstream.upstream_ca=' . certs()->{ca}{cert},
    'upstream.breaker=no', 'resolve.good.test=127.0.0.1');
my $w = Weir->start(set => \@set);

sub via($w, $how, @args)
{
    return curl(undef, "--$how", $w->addr, @args);
}

# A request of SOCKS 5 without its version: command, host, port.
sub ask5($command, $host, $port)
{
    my $at = $host =~ /^\d+(\.\d+){3}$/ ? "\1" . inet_aton($host)
        : $host =~ /:/ ? "\4" . inet_pton(AF_INET6, $host)
        : "\3" . pack('C/a', $host);
    return "\5" . chr($command) . "\0$at" . pack('n', $port);
}

# A wire past its hello.
sub five($w)
{
    my $c = $w->client;
    $c->put("\5\1\0");
    is $c->get(2), "\5\0", 'hello: no login';
    return $c;
}

sub reply5($c)
{
    my $head = $c->get(4);
    return -1 if length $head < 4;
    my $rest = $c->get(ord(substr $head, 3) == 4 ? 18 : 6);
    return (ord substr($head, 1), $rest);
}

# ---- real clients
for my $how (qw(socks4 socks4a socks5 socks5-hostname)) {
    my $r = via($w, $how, 'http://localhost:' . $plain->port . '/');
    is $r->{out}, 'hello', "curl --$how" or diag $r->{err};
    $r = via($w, $how, '--cacert', $w->ca,
        'https://localhost:' . $tls->port . '/');
    is $r->{out}, 'hello', "curl --$how, https intercepted" or diag $r->{err};
}
like $w->wait_log(qr/spoke=intercepted/), qr/in=/, 'it was intercepted';
{
    my $r = via($w, 'socks5-hostname', 'http://weir.invalid/');
    like $r->{out}, qr/This is weir/, 'our own pages by their name';
}
{
    my $o = Weir->start(set => [ @set, 'intercept.enable=no' ]);
    my $r = via($o, 'socks5-hostname', '--cacert', certs()->{ca}{cert},
        'https://good.test:' . $tls->port . '/');
    is $r->{out}, 'hello', 'and not intercepted' or diag $r->{err};
    like $o->wait_log(qr/ tunnel /), qr/target=good\.test:/, 'a tunnel';
    $o->stop;
}

# ---- the reply comes when the target is connected, and tells the truth
{
    my $l = listener();
    my $c = five($w);
    $c->put(ask5(1, '127.0.0.1', $l->port) . 'early');
    my $s = $l->accept;
    my ($code, $bound) = reply5($c);
    is $code, 0, 'connected: 0';
    my ($ip, $port) = unpack 'a4 n', $bound;
    is inet_ntoa($ip), '127.0.0.1', 'with our address on the way';
    is $port, $s->{sock}->peerport, 'and our port';
    is $s->get(5), 'early', 'bytes behind the request are delivered';
    $s->put('server speaks');
    is $c->get(13), 'server speaks', 'both ways';
    $c->shut;
    is $s->get_eof, '', 'an end goes through';
}
SKIP: {
    my $l = eval { listener(host => '::1') }
        or skip 'this machine has no IPv6', 3;
    my $c = five($w);
    $c->put(ask5(1, '::1', $l->port));
    $l->accept;
    my ($code, $bound) = reply5($c);
    is $code, 0, 'an IPv6 target';
    is length $bound, 18, 'our address is one, too';
}
{
    my $l = listener(); # 4 and 4a, byte by byte
    for my $ask ("\4\1" . pack('n', $l->port) . "\x7f\0\0\1me\0",
        "\4\1" . pack('n', $l->port) . "\0\0\0\1\0localhost\0") {
        my $c = $w->client;
        $c->put($_) for split //, $ask;
        my $s = $l->accept;
        is unpack('H4', $c->get(8)), '005a', 'SOCKS 4: granted';
        $c->put('x');
        is $s->get(1), 'x', 'and connected';
    }
}
my %codes = (
    5 => [ '127.0.0.1', $dead,  'refused' ],
    4 => [ 'no-such-name.invalid', 80, 'unknown name' ],
    2 => [ '127.0.0.1', $w->port, 'ourselves' ],
);
for my $want (sort keys %codes) {
    my ($host, $port, $what) = $codes{$want}->@*;
    my $c = five($w);
    $c->put(ask5(1, $host, $port));
    is((reply5($c))[0], $want, "$what: $want");
    is $c->get_eof, '', 'and closed';
    like $w->wait_log(qr/ socks .*reply=$want/), qr/target=\Q$host\E:$port/,
        'the log has it';
}
{
    my $c = $w->client;
    $c->put("\4\1" . pack('n', $dead) . "\x7f\0\0\1\0");
    is unpack('H4', $c->get(8)), '005b', 'SOCKS 4: refused';
}
{
    my $f = Weir->start(set => [ @set, 'upstream.connect_s=1' ]);
    my ($port, @hold) = black_hole();
    my $c = five($f);
    $c->put(ask5(1, '127.0.0.1', $port));
    is((reply5($c))[0], 6, 'nobody answers: 6');
    $f->stop;
}
for (['BIND', ask5(2, '127.0.0.1', 80), 7], ['command 9', ask5(9, '127.0.0.1', 80), 7],
    ['address type 2', "\5\1\0\2", 8], ['reserved', "\5\1\7\1", 1],
    ['port 0', ask5(1, '127.0.0.1', 0), 1], ['an empty name', "\5\1\0\3\0\0\1", 1]) {
    my ($name, $ask, $want) = @$_;
    my $c = five($w);
    $c->put($ask);
    is((reply5($c))[0], $want, "$name: $want");
    is $c->get_eof, '', 'and closed';
}
{
    my $c = $w->client;
    $c->put("\5\1\1");
    is $c->get_eof, "\5\xff", 'no method that we know';
    $c = $w->client;
    $c->put("\4\2" . pack('n', 80) . "\x7f\0\0\1\0");
    is unpack('H4', $c->get(8)), '005b', 'SOCKS 4: BIND';
    $c = $w->client;
    $c->put("\5\1\2\1\1a\1b" . ask5(1, '127.0.0.1', $plain->port));
    is $c->get(4), "\5\2\1\0", 'who can only log in may';
    is((reply5($c))[0], 0, 'all of it in one piece');
}
{ # a slow client is not waited for for ever
    my $w = Weir->start(set => [ @set, 'proxy.head_s=2' ]);
    my $from = time;
    my $c = $w->client;
    $c->put("\5");
    is $c->get_eof, '', 'half a hello: closed';
    ok time - $from < 8, 'in time';
    $w->stop;
}

# ---- users
my $u = Weir->start(set => [ @set, 'proxy.users=ann:se:cret, bob:x' ]);
my $url = 'http://127.0.0.1:' . $plain->port . '/';
is curl(undef, '--socks5', 'ann:se%3acret@' . $u->addr, $url)->{out}, 'hello',
    'SOCKS 5 with a password';
for my $bad ('ann:wrong@', 'nobody:x@', '') {
    my $r = curl(undef, '--socks5', $bad . $u->addr, $url);
    is $r->{exit}, 97, "SOCKS 5 as '$bad' is refused";
}
is curl(undef, '--socks4', $u->addr, $url)->{exit}, 97, 'SOCKS 4 is refused';
is curl($u, '--proxy-user', 'bob:x', $url)->{out}, 'hello', 'Basic';
is curl($u, '--proxy-user', 'bob:x', '-p', $url)->{out}, 'hello',
    'Basic, CONNECT';
{
    my $r = curl($u, $url);
    is $r->{code}, 407, 'nothing: 407';
    is curl($u, '--proxy-user', 'bob:y', $url)->{code}, 407, 'wrong: 407';
    is curl($u, '-p', $url)->{connect}, 407, 'CONNECT: 407';
    is curl($u, '--proxy-anyauth', '--proxy-user', 'bob:x', $url)->{out},
        'hello', 'a client that asks first';
    my $c   = $u->client;
    my $got = $c->ask('GET', $url);
    like field($got, 'proxy-authenticate'), qr/^Basic realm="weir"/,
        'Proxy-Authenticate';
    is field($got, 'proxy-status') =~ /error=http_request_denied/, 1,
        'Proxy-Status';
    $got = $c->ask('GET', $url, ['Proxy-Authorization: Basic Ym9iOng=']);
    is $got->{body}, 'hello', 'the same connection may try again';
    for my $bad ('Basic', 'Basic %%%', 'Bearer Ym9iOng=', 'Basic Ym9i', 'Basic Ym9iOgB4') {
        is $c->ask('GET', $url, ["Proxy-Authorization: $bad"])->{status}, 407, $bad;
    }
    is $c->ask('GET', $url, [ ('Proxy-Authorization: Basic Ym9iOng=') x 2 ])
        ->{status}, 407, 'twice is not once';
}
unlike $u->log, qr/secret|se:cret|Ym9i/, 'no credentials in the log';
unlike $plain->notes, qr/proxy-auth/i, 'none at the origin';
{
    my $r = weir_run([ '--set', 'proxy.users=nopassword', '-t' ]);
    is $r->{exit}, 1, 'a user without a password is no user';
    unlike $r->{err}, qr/nopassword/, 'and the message does not repeat it';
}

# ---- WebSocket
{
    my $l = listener();
    my $c = five($w);
    $c->put(ask5(1, '127.0.0.1', $l->port));
    my $s = $l->accept;
    is((reply5($c))[0], 0, 'WebSocket: connected');
    $c->put("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n");
    like $s->get_head, qr/Upgrade: websocket/, 'asked for';
    $s->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        . "Upgrade: websocket\r\n\r\n\x81\2hi");
    like $c->get_head, qr/^HTTP\/1.1 101/, 'granted';
    is $c->get(4), "\x81\2hi", 'and frames pass';
}

# ---- UDP: RFC 1928 section 7
sub udp_socket($port = 0)
{
    return IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => $port,
        Type => SOCK_DGRAM, Proto => 'udp') // die "udp: $@";
}

# One datagram, or '' after $s seconds.
sub receive($sock, $s = LIMIT)
{
    my $set = '';
    vec($set, fileno $sock, 1) = 1;
    return '' if select($set, undef, undef, $s) <= 0;
    my $from = $sock->recv(my $data, 65536);
    return wantarray ? ($data, $from) : $data;
}

sub to($sock, $port, $data)
{
    $sock->send($data, 0, Socket::pack_sockaddr_in($port, inet_aton('127.0.0.1')));
}

sub associate($w)
{
    my $c = five($w);
    $c->put(ask5(3, '0.0.0.0', 0));
    my ($code, $bound) = reply5($c);
    my ($ip, $port) = unpack 'a4 n', $bound // '';
    return ($c, $code, $port);
}
my $udp = Weir->start(set => [ @set, 'tunnel.udp_associations=2',
    'proxy.idle_s=3', 'access.target_deny=127.0.0.9' ]);
{
    my ($c, $code, $port) = associate($udp);
    is $code, 0, 'UDP ASSOCIATE';
    my ($me, $far, $other) = map { udp_socket() } 1 .. 3;
    my $head = "\0\0\0\1" . inet_aton('127.0.0.1') . pack 'n', $far->sockport;
    to($me, $port, $head . 'ping');
    my ($got, $from) = receive($far);
    is $got, 'ping', 'goes up without its head';
    $far->send('pong', 0, $from);
    is receive($me), $head . 'pong', 'comes down with one';
    to($me, $port, "\0\0\0\3" . pack('C/a', 'localhost')
        . pack('n', $far->sockport) . 'by name');
    is scalar receive($far), 'by name', 'a name is looked up';
    to($me, $port, "\0\0\1\1" . substr($head, 4) . 'fragment');
    to($me, $port, "\0\0\0\2" . substr($head, 4) . 'type');
    to($me, $port, "\0\1\0\1" . substr($head, 4) . 'reserved');
    to($me, $port, "\0\0\0\1\x7f");
    to($me, $port, "\0\0\0\1" . inet_aton('127.0.0.9') . substr($head, 8) . 'denied');
    to($other, $port, $head . 'stranger');
    my $big = 'x' x 60000;
    to($me, $port, $head . $big);
    my @came;
    push @came, scalar receive($far) while !@came || $came[-1] ne $big;
    is scalar @came, 1, 'fragments, garbage and strangers are dropped'
        or diag map { substr($_, 0, 20) . "\n" } @came;
    like $udp->wait_log(qr/ denied .*127\.0\.0\.9/), qr/rule=127\.0\.0\.9/,
        'a denied target is told once';
    my ($c2, $code2) = associate($udp);
    is $code2, 0, 'a second one';
    my (undef, $code3) = associate($udp);
    is $code3, 1, 'a third one is too many';
    $c->close;
    like $udp->wait_log(qr/ udp .*down=4/), qr/up=60011 /,
        'it ends with its connection';
    to($me, $port, $head . 'late');
    is receive($far, 0.3), '', 'and carries nothing any more';
    my ($c4, $code4) = associate($udp);
    is $code4, 0, 'its place is free again';
    my $from4 = time;
    is $c4->get_eof, '', 'one that is silent ends';
    ok time - $from4 < 10, 'after idle_s';
}
# ---- QUIC in an association
# A port that leads to $port of 127.0.0.1 by the association's $relay.
sub wrapped($relay, $port)
{
    my $local = udp_socket();
    my $out   = udp_socket();
    my $head  = "\0\0\0\1" . inet_aton('127.0.0.1') . pack 'n', $port;
    pipe my $watch, my $hold or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        close $hold;
        Weir::H3::forked();
        my $peer;
        while (1) {
            my $set = '';
            vec($set, fileno $_, 1) = 1 for $local, $out, $watch;
            next if select($set, undef, undef, undef) < 0;
            POSIX::_exit(0) if vec($set, fileno $watch, 1);
            if (vec($set, fileno $local, 1)) {
                $peer = $local->recv(my $data, 65536);
                to($out, $relay, $head . $data);
            }
            next if !vec($set, fileno $out, 1);
            $out->recv(my $data, 65536);
            $local->send(substr($data, length $head), 0, $peer);
        }
    }
    return ($local->sockport, sub { close $hold; waitpid $pid, 0 });
}
{
    my ($c, undef, $port) = associate($udp);
    my ($at, $end) = wrapped($port, $tls->port);
    my $h3 = Weir::H3->client(port => $at, sni => 'good.test');
    ok $h3->{up}, 'QUIC in an association' or diag $h3->{reason};
    my $s = $h3->answer($h3->request([ Weir::H2::get(
        'good.test:' . $tls->port, '/quic', 'GET', 'https') ]));
    is $s->{body}, 'hello', 'is intercepted, and carried on';
    $h3->close;
    $end->();
    $c->close;
    like $udp->wait_log(qr{ exchange .*/quic}), qr{version=http/3 .*status=200},
        'its request has a line';
    like $udp->wait_log(qr/ udp .*up=[1-9]\d{3} /), qr/ down=[1-9]\d{3} /,
        'and the association has counted it';
}
$udp->stop('weir with UDP');
$u->stop('weir with users');
$w->stop;
done_testing;
