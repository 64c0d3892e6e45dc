#!/usr/bin/perl
# HTTP/3 peers that make work and ask for nothing, or break the rules: each is
# told so, costs no memory, and keeps nobody else from being served.
use v5.36;
use lib 't/lib';
use IO::Socket::IP;
use Test::More;
use Weir;
use Weir::H3;

# Budgets are for 10 seconds: small ones, or a slow machine could not flood us.
my $w = Weir->start(set => [ 'proxy.head_s=4', 'proxy.head_bytes=8192',
        'proxy.workers=16', 'http3.half_open=8', 'http2.priorities=100',
        'http2.resets=100' ]);
my $o = origin(sub ($c) {
    while ($c->get_request) {
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    }
});
my $silent = listener();
my @get = (':method', 'GET', ':scheme', 'http', ':authority', $o->addr,
    ':path', '/');
my @own = (':method', 'GET', ':scheme', 'http', ':authority', 'weir.invalid',
    ':path', '/');

sub client(%o) { return Weir::H3->client(port => $w->port, %o) }

sub alive($what)
{
    my $c = client();
    my $s = $c->answer($c->request([@get]));
    is $s->{body}, 'hello', $what;
    $c->close;
}

# Send pieces until weir has enough of it, $max at most.
sub pour($c, $piece, $max = 20_000)
{
    for my $n (1 .. $max) {
        $piece->($n);
        next if $n % 50;
        1 while Weir::H3::pump(0);
        last if $c->{gone};
    }
    $c->until(sub { 0 }) if !$c->{gone} && Weir::H3::pump(1);
    return $c->{gone} ? $c->ending : 'goes on';
}

my $calm = 'application EXCESSIVE_LOAD';

# ---- too much of what is allowed
{
    my $c = client();
    is pour($c, sub { $c->put($c->{control}, 0xf0700, "\0u=1") }), $calm,
        'PRIORITY_UPDATE without end';
}
{
    my $c = client();
    is pour($c, sub { $c->put($c->{control}, 0x21 + 31 * $_[0], 'x') }), $calm,
        'unknown frames without end';
}
{
    my $c  = client();
    my $id = $c->request([ ':method', 'POST', @get[ 2, 3, 4 ], $silent->addr,
        ':path', '/' ], end => 0);
    is pour($c, sub { $c->put($id, 'DATA'); $c->drained($id) }, 3000), $calm,
        'empty DATA without end';
}
{
    my $c = client();
    is pour($c, sub {
        my $id = $c->request([@get], end => 0);
        $c->reset_stream($id, 'REQUEST_CANCELLED');
        $c->stop_stream($id, 'REQUEST_CANCELLED');
    }, 3000), $calm, 'rapid reset';
}
{
    my $c = client();
    is pour($c, sub { $c->request([ ':method', 'GET', ':path', 'x' ]) }, 3000),
        $calm, 'malformed requests without end';
}
alive('others are served');

# ---- heads
{
    my $c = client();
    my $s = $c->answer($c->request([ @get, 'x', 'y' x 9000 ]));
    is $s->{status}, 431, 'a head that is too large: 431';
    $s = $c->answer($c->request([@get]));
    is $s->{status}, 200, '  and the connection goes on';
    $c->request([ @get, map { ("x$_", 'y' x 6000) } 1 .. 8 ]);
    is $c->ending, $calm, 'one beyond all measure ends it';
}
{
    my $c  = client();
    my $id = $c->open_stream;
    $c->raw($id, Weir::H3::varint(1) . Weir::H3::varint(400) . "\0\0\xd1");
    $c->until(sub { $c->stream($id)->{reset} });
    is $c->stream($id)->{reset}, 'REQUEST_INCOMPLETE',
        'a head that never ends is given up';
    is $c->answer($c->request([@get]))->{status}, 200, '  its stream alone';
}

{
    my @c = map { client() } 1 .. 20;
    for my $c (@c) {
        my $id = $c->open_stream;
        $c->raw($id, Weir::H3::varint(1) . Weir::H3::varint(400) . "\0\0\xd1");
        $c->drained($id);
    }
    alive('twenty unfinished heads do not hold sixteen workers');
    $_->close for @c;
}

# ---- rules of the connection
sub broken($what, $code, $do, %o)
{
    my $c = client(%o);
    $do->($c);
    is $c->ending, "application $code", $what;
}

broken('DATA first', 'FRAME_UNEXPECTED',
    sub ($c) { $c->put($c->open_stream, 'DATA', 'x') });
broken('SETTINGS twice', 'FRAME_UNEXPECTED',
    sub ($c) { $c->put($c->{control}, 'SETTINGS') });
broken('SETTINGS on a request', 'FRAME_UNEXPECTED',
    sub ($c) { $c->put($c->open_stream, 'SETTINGS') });
broken('no SETTINGS', 'MISSING_SETTINGS', sub ($c) {
    my $id = $c->open_stream('uni');
    $c->raw($id, "\0" . $c->frame('GOAWAY', "\0"));
}, bare => 1);
broken('a setting of HTTP/2', 'SETTINGS_ERROR',
    sub ($c) { $c->raw($c->open_stream('uni'), "\0" . $c->frame('SETTINGS',
            Weir::H3::varint(2) . Weir::H3::varint(0))) }, bare => 1);
broken('the control stream ends', 'CLOSED_CRITICAL_STREAM',
    sub ($c) { $c->raw($c->{control}, '', 1) });
broken('a second control stream', 'STREAM_CREATION_ERROR',
    sub ($c) { $c->raw($c->open_stream('uni'), "\0") });
broken('a dynamic table that was not offered to us', 'QPACK_ENCODER_STREAM_ERROR',
    sub ($c) { $c->raw($c->open_stream('uni'), "\x02\x3f\xff\xff\xff\x0f") });
broken('a reference into nowhere', 'QPACK_DECOMPRESSION_FAILED',
    sub ($c) { $c->put($c->open_stream, 'HEADERS', "\0\0\xff\xff\xff\xff\x07") });
broken('a datagram without a stream', 'DATAGRAM_ERROR', sub ($c) {
    Weir::H3::command("datagram $c->{id} 4", "\xc0abc");
});

# ---- malformed messages: the stream alone
for my $bad (
    [ 'no :path', [ @get[ 0 .. 5 ] ] ],
    [ 'a field in capitals', [ @get, 'X-Y', 'z' ] ],
    [ 'Connection', [ @get, 'connection', 'close' ] ],
    [ 'two :path', [ @get, ':path', '/' ] ],
    [ ':status in a request', [ @get, ':status', '200' ] ],
) {
    my $c  = client();
    my $id = $c->request($bad->[1]);
    my $s  = $c->answer($id);
    is $s->{reset} // $s->{status}, 'MESSAGE_ERROR', "$bad->[0]: malformed";
    is $c->answer($c->request([@get]))->{status}, 200, '  the stream alone';
    $c->close;
}
{
    my $c  = client();
    my $id = $c->request([ ':method', 'POST', @get[ 2, 3, 4 ], $silent->addr,
        ':path', '/', 'content-length', 5 ], end => 0);
    $c->data($id, 'abcdefgh', 1);
    $c->until(sub { $c->stream($id)->{reset} || $c->stream($id)->{end} });
    is $c->stream($id)->{reset}, 'MESSAGE_ERROR', 'more content than announced';
    is $c->answer($c->request([@get]))->{status}, 200, '  the stream alone';
}

{ # the same, and much more on its way
    my $c  = client();
    my $id = $c->request([ ':method', 'POST', @get[ 2, 3, 4 ], $silent->addr,
        ':path', '/', 'content-length', 5 ], end => 0);
    $c->data($id, 'y' x 1000) for 1 .. 2000;
    $c->data($id, 'z', 1);
    $c->until(sub { $c->stream($id)->{reset} });
    is $c->stream($id)->{reset}, 'MESSAGE_ERROR', '2 MB more than announced';
    is $c->answer($c->request([@get]))->{status}, 200, '  the stream alone';
}

# ---- clients that never finish their handshake
{
    my @c = map { client(wait => 0) } 1 .. 40;
    $_->tell('abandon') for @c;
    # Half an Initial each, as it were: nobody comes back to these.
    my $sock = IO::Socket::IP->new(Proto => 'udp', PeerHost => '127.0.0.1',
        PeerPort => $w->port);
    for my $n (1 .. 400) {
        my $noise = pack('CNC', 0xc0, 1, 8) . pack('NN', $n, 77) . "\x08"
            . pack('NN', 3, $n) . "\0" . pack('n', 0x4000 | 1100);
        $sock->send($noise . "\0" x (1200 - length $noise));
    }
    alive('handshakes that lead nowhere keep nobody out');
}

# ---- a crowd of bodies that nobody reads
{
    my $c = client();
    my $n = 0;
    for (1 .. 300) {
        my $id = $c->request([ ':method', 'POST', @own[ 2 .. 7 ] ], end => 0);
        $c->data($id, 'z' x 20_000, 1);
        $n += ($c->answer($id)->{status} // 0) >= 400;
    }
    is $n, 300, 'bodies that nobody reads';
    is $c->answer($c->request([@get]))->{status}, 200, '  use up no window';
}

# ---- noise
{
    my $sock = IO::Socket::IP->new(Proto => 'udp', PeerHost => '127.0.0.1',
        PeerPort => $w->port);
    srand 7;
    for my $n (1 .. 2000) {
        $sock->send(join '', map { chr rand 256 } 1 .. 1 + rand 1300);
    }
    alive('noise');
}
cmp_ok $w->status('VmRSS'), '<', 60_000, 'memory stays small'
    if $ENV{WEIR} !~ /asan|tsan/;
$w->stop;
done_testing;
