#!/usr/bin/perl
# HTTP/2 within HTTP/2, as a browser has it behind an https:// proxy: a session
# with the proxy, CONNECT on a stream of it, TLS and a second session inside,
# and there WebSockets (RFC 8441), whose origin speaks HTTP/1.
use v5.36;
use lib 't/lib';
use Digest::SHA qw(sha1_base64);
use Test::More;
use Weir;
use Weir::H2;

use constant { CLOSE => 8, LARGE => 60_000 };

my $certs = certs();

# RFC 6455: masked frames come, the same go back unmasked.  After a Close the
# origin hangs up at once, whatever is still on its way to it.
sub echo($c, $r)
{
    my $accept = sha1_base64(field($r, 'sec-websocket-key')
            . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';
    $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            . "Upgrade: websocket\r\nSec-WebSocket-Accept: $accept\r\n\r\n");
    while (length(my $head = $c->get(2)) == 2) {
        my ($op, $n) = unpack 'CC', $head;
        $n &= 127;
        my $more = $n == 126 ? $c->get(2) : '';
        $n = unpack 'n', $more if $n == 126;
        my $mask = $c->get(4);
        my $data = $n ? $c->get($n) : '';
        $data ^.= substr($mask x (1 + $n / 4), 0, $n);
        $c->put(pack('CC', $op, $n < 126 ? $n : 126) . $more . $data);
        last if ($op & 15) == CLOSE;
    }
}

my $o = origin(sub ($c) {
    while (my $r = $c->get_request) {
        return echo($c, $r) if $r->{target} eq '/echo';
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n"
                . 'x' x 3000);
    }
}, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });
my $w = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
    "upstream.upstream_ca=$certs->{ca}{cert}", 'intercept.alpn=h2' ]);

# A session inside of a stream of a session; no DATA of ours is longer.
sub nested($frame)
{
    my $wire = $w->client;
    $wire->tls_client(alpn => ['h2'], sni => 'localhost')
        or die "TLS: $wire->{error}\n";
    my $outer  = Weir::H2->client($wire);
    my $inside = Weir::H2::Wire->connect($outer, 'good.test:443',
        frame => $frame);
    $inside->tls_client(alpn => ['h2'], sni => 'good.test');
    return Weir::H2->client($inside);
}

sub websocket($h2, $frame)
{
    my $id = $h2->request([ ':method', 'CONNECT', ':protocol', 'websocket',
        ':scheme', 'https', ':path', '/echo', ':authority', 'good.test',
        'sec-websocket-version', 13 ], end => 0);
    my $s = $h2->stream($id);
    $h2->until(sub { $s->{status} || $s->{reset} || $h2->{goaway} });
    die 'WebSocket: ' . ($s->{status} // $s->{reset} // $h2->{goaway}) . "\n"
        if ($s->{status} // 0) != 200;
    return Weir::H2::Wire->on($h2, $id, frame => $frame);
}

# A message in frames of at most $most bytes, masked.
sub message($op, $data, $most)
{
    my $out = '';
    do {
        my $part = substr $data, 0, $most, '';
        my $n    = length $part;
        $out .= pack('CC', $op | (length $data ? 0 : 0x80),
            0x80 | ($n < 126 ? $n : 126)) . ($n < 126 ? '' : pack 'n', $n)
            . 'abcd' . ($part ^. substr 'abcd' x (1 + $n / 4), 0, $n);
        $op = 0;
    } while (length $data);
    return $out;
}

sub get_message($c)
{
    my $all = '';
    while (1) {
        my ($op, $n) = unpack 'CC', $c->get(2);
        return 'cut: ' . $c->how if !defined $n;
        $n = unpack 'n', $c->get(2) if $n == 126;
        $all .= $c->get($n);
        return $all if $op & 0x80;
    }
}

# How many of $n messages came back as they were, and what a Close brought.
# $ends: our END_STREAM comes with our Close, not after the answer to it.
sub chat($h2, $frame, $n, $size, $most, $ends)
{
    my $c    = websocket($h2, $frame);
    my $good = 0;
    for my $i (1 .. $n) {
        my $text = "$i:" . 'x' x $size;
        $c->put(message(1, $text, $most));
        $good += get_message($c) eq $text;
    }
    my $bye = pack('n', 1000) . 'done';
    $c->put(message(CLOSE, $bye, $most));
    $c->shut if $ends;
    my $end = get_message($c) eq $bye ? 'closed' : $c->how;
    $c->shut if !$ends;
    $h2->until(sub { $c->is_over });
    return "$good $end " . $h2->stream($c->{id})->{end};
}

for my $frame (16_384, 1000) {
    my $h2 = nested($frame);
    my @id = map { $h2->request([ Weir::H2::get('good.test', "/$_", 'GET',
        'https') ]) } 1 .. 5;
    is_deeply [ map { length $h2->answer($_)->{body} } @id ], [ (3000) x 5 ],
        "DATA of $frame: requests";
    for my $ends (0, 1) {
        is chat($h2, $frame, 20, 100, LARGE + 10, $ends), '20 closed 1',
            'small messages' . ($ends ? ', END_STREAM with the Close' : '');
        is chat($h2, $frame, 3, LARGE, LARGE + 10, $ends), '3 closed 1',
            'large ones';
        is chat($h2, $frame, 3, LARGE, 16_000, $ends), '3 closed 1',
            'in several frames each';
    }
    $h2->{wire}{h2}{wire}->close;
}
ok $w->wait_log(qr/ close .*spoke=intercepted\+http\/2/),
    'it was a session in a session';
$w->stop;
done_testing;
