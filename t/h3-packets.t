#!/usr/bin/perl
# QUIC frames that no honest peer sends (RFC 9000 section 19, RFC 9001), as a
# client sends them and as an origin does: the connection ends with the right
# code or goes on, and weir serves everybody else.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H3;

my $w = Weir->start(set => [ 'upstream.http3=*.good.test',
    map({ "resolve.o$_.good.test=127.0.0.1" } 1 .. 30),
    'upstream.upstream_ca=' . certs()->{ca}{cert} ]);
my $o = origin(sub ($c) {
    while ($c->get_request) {
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    }
});

sub client($idle_ms = 10_000)
{
    return Weir::H3->client(port => $w->port, sni => 'localhost',
        wire => { ca => $w->ca, idle_ms => $idle_ms });
}

sub alive($c)
{
    return $c->answer($c->request([ Weir::H2::get($o->addr) ]))->{body}
        eq 'hello';
}

sub varint($n) { return Weir::H3::varint($n) }

# RFC 9000 section 19.15
sub new_id($n, $before, $len = 8)
{
    return "\x18" . varint($n) . varint($before) . chr($len)
        . pack('NN', 77, $n) . pack('N4', 1, 2, 3, $n);
}

# A TLS message in a CRYPTO frame.
sub crypto($type, $content, $offset = 0)
{
    my $message = pack('CCn', $type, 0, length $content) . $content;
    return "\x06" . varint($offset) . varint(length $message) . $message;
}

use constant ENCODING => 'transport 7';
use constant BROKEN   => 'transport 10';
use constant STATE    => 'transport 5';
use constant CRITICAL => 'application CLOSED_CRITICAL_STREAM';

# ---- a client's
for my $case (
    ['9000-12.4 an unknown frame', ENCODING, "\x21abc"],
    ['9000-19.20 HANDSHAKE_DONE', BROKEN, "\x1e"],
    ['9000-19.7 NEW_TOKEN', BROKEN, "\x07\x04abcd"],
    ['9000-19.16 an identifier retired that never was', BROKEN,
        "\x19" . varint(5000)],
    ['9000-19.16 all identifiers retired', undef,
        map { "\x19" . varint($_) } 0 .. 2000],
    ['9000-5.1.1 too many identifiers', 'transport (?:9|10)',
        map { new_id($_, 0) } 1 .. 50],
    ['9000-5.1.2 identifiers that retire each other', undef,
        map { new_id($_, $_) } 1 .. 2000],
    ['9000-19.15 an identifier of no bytes', ENCODING, new_id(1, 0, 0)],
    ['9000-19.15 one number for two identifiers', BROKEN, "\x18\x01\0\x08"
        . 'a' x 8 . 'x' x 16 . "\x18\x01\0\x08" . 'b' x 8 . 'x' x 16],
    # Our ACKs get lost with the packets that are forged, and then the answers
    # to challenges use up the window: that is between weir and this client.
    ['9000-8.2 paths challenged without end', undef,
        map { join '', map { "\x1a" . pack 'NN', 5, $_ } 1 .. 100 } 1 .. 50],
    ['9000-19.8 a stream that is ours', STATE, "\x0a\x03\x01x"],
    ['9000-4.6 a stream beyond the limit', 'transport 4',
        "\x0a" . varint(400_000) . "\x01x"],
    ['9000-4.1 content beyond the window', 'transport 3',
        "\x0e\x04" . varint((1 << 62) - 9) . "\x01x"],
    ['9000-19.5 STOP_SENDING where nothing is sent', STATE, "\x05\x02\x01"],
    ['9114-6.2.1 the control stream is not wanted', CRITICAL,
        "\x05\x03" . varint(0x100)],
    ['9114-6.2.1 the control stream is reset', CRITICAL,
        "\x04\x02" . varint(0x100) . varint(100)],
    ['9000-19.10 a window for what is not sent', STATE, "\x11\x02\x10"],
    ['9000-19.11 more streams than there can be', ENCODING,
        "\x12" . varint(1 << 61)],
    ['9000-7.5 CRYPTO far ahead', 'transport 13',
        "\x06" . varint(1 << 30) . "\x04abcd"],
    ['9001-6 a KeyUpdate of TLS', 'transport 266', crypto(24, "\0")],
    ['9001-6 one that asks for another', 'transport 266', crypto(24, "\1")],
    ['9001-6 one in pieces', 'transport 266', "\x06\0\1\x18", "\x06\1\1\0",
        "\x06\2\3\0\1\0"],
    ['9001-4.1.3 a ClientHello behind the handshake', 'transport \d+',
        crypto(1, 'x' x 40)],
    ['9001-4.1.3 a second Finished', 'transport \d+', crypto(20, 'f' x 32)],
    ['9001-4.1.3 a ticket of a client\'s', 'transport \d+',
        crypto(4, 't' x 40)],
    ['9000-13.1 an ACK for what was not sent', BROKEN,
        "\x02" . varint(1 << 30) . "\0\0\0"],
    ['9000-19.3 an ACK of a negative range', ENCODING, "\x02\x05\0\0\x0a"],
    ['9221-4 a datagram that is cut', ENCODING, "\x31" . varint(5000) . 'x'],
    ['9000-19.8 a stream that is cut', ENCODING, "\x0a\0" . varint(3000) . 'x'],
    ['9000-19.14 STREAMS_BLOCKED beyond measure', ENCODING,
        "\x16" . varint((1 << 60) + 1)],
    ['9000-19.12 DATA_BLOCKED without end', 'goes on',
        map { join '', map { "\x14" . varint($_) } 1 .. 300 } 1 .. 50],
    ['9000-3.5 streams opened, stopped and reset', undef, map {
        my $id = varint(4 * $_);
        "\x0a$id\x01\x01\x05$id\x01\x04$id\x01\x01";
    } 3 .. 1200],
) {
    my ($what, $end, @packets) = @$case;
    my $c = client(defined $end ? 10_000 : 2000);
    ok alive($c), $what;
    for my $n (1 .. @packets) {
        last if $c->{gone};
        $c->packet($packets[ $n - 1 ]);
        next if $n % 20;
        1 while Weir::H3::pump(0);
    }
    if (!defined $end) { # either will do
        alive($c);
    } elsif ($end eq 'goes on') {
        ok alive($c), '  goes on' or diag $c->{gone}, $c->{code};
    } else {
        like $c->ending, qr/^$end$/, '  ends it so';
    }
    $c->close if !$c->{gone};
    $c = client();
    ok alive($c), '  others are served';
    $c->close;
}

# ---- an origin's
my $origin = Weir::H3->listener(wire => { tickets => 0 });
my $nth = 0; # what fails is not asked in HTTP/3 again for a while
for my $case (
    ['9001-6 a KeyUpdate of TLS', 'transport 266', crypto(24, "\0")],
    ['9001-6 one behind a ticket\'s head', 'transport \d+', "\x06\0\4\4\0\0\1"
        . "\x06\4\6x\x18\0\0\1\0"],
    ['9000-12.4 an unknown frame', ENCODING, "\x21abc"],
    ['9000-19.8 a stream that only we may open', STATE, "\x0a\x08\x01x"],
    ['9000-4.6 a stream that a server may not open', 'transport 4',
        "\x0a\x01\x01x"],
    ['9000-19.7 an empty token', ENCODING, "\x07\0"],
    ['9000-19.16 an identifier retired that never was', BROKEN,
        "\x19" . varint(5000)],
) {
    my ($what, $end, @packets) = @$case;
    my $c = $w->client;
    my $host = 'o' . ++$nth . '.good.test:' . $origin->port;
    $c->put(request('GET', "https://$host/"));
    my $s = $origin->accept;
    my $id = $s->next_request->{id};
    $s->packet($_) for @packets;
    like $s->ending, qr/^$end$/, "an origin: $what";
    is $c->get_answer->{status}, 502, '  the client is told';
    $c->close;
}

ok alive(client()), 'after all that weir is there';
$w->stop;
done_testing;
