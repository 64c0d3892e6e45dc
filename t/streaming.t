#!/usr/bin/perl
# Whatever is there goes on at once, in both directions, however much it is.
use v5.36;
use Digest::MD5 qw(md5_hex);
use Test::More;
use Weir;

my $w   = Weir->start(set => ['intercept.enable=no']);
my $get = "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n";

# An event arrives before the next one is sent: each step waits for it.
for my $case (
    [ 'chunks', "Transfer-Encoding: chunked\r\n", sub ($t) {
        sprintf "%x\r\n%s\r\n", length $t, $t } ],
    [ 'until close', '', sub ($t) { $t } ],
    [ 'length', "Content-Length: 70\r\n", sub ($t) { $t } ],
) {
    my ($name, $field, $wrap) = @$case;
    my $l = listener();
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    $s->put("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n$field\r\n");
    like $c->get_head, qr/^HTTP\/1.1 200/, "$name: the head comes at once";
    for my $n (1 .. 5) {
        my $event = "data: event$n\n\n";
        $s->put($wrap->($event));
        like $c->get_until(qr/event$n\n\n/), qr/data: event$n/,
            "$name: event $n comes before the next is sent";
    }
}

# The same upwards.
for my $case (
    [ 'chunks', "Transfer-Encoding: chunked\r\n", sub ($t) {
        sprintf "%x\r\n%s\r\n", length $t, $t } ],
    [ 'length', "Content-Length: 25\r\n", sub ($t) { $t } ],
) {
    my ($name, $field, $wrap) = @$case;
    my $l = listener();
    my $c = $w->client;
    $c->put(("POST http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n$field\r\n")
        =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    like $s->get_head, qr/^POST/, "$name: the head goes before the body";
    for my $n (1 .. 5) {
        $c->put($wrap->("part$n"));
        like $s->get_until(qr/part$n/), qr/part$n/,
            "$name: part $n goes before the next";
    }
}

# Both at once: question and answer, in turns, within one exchange.
{
    my $l = listener();
    my $c = $w->client;
    $c->put(("POST http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n") =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_head;
    $s->put("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    $c->get_head;
    for my $n (1 .. 20) {
        $c->put("5\r\nask$n" . ' ' x (2 - length $n) . "\r\n");
        $s->get_until(qr/ask$n/);
        $s->put("5\r\nsay$n" . ' ' x (2 - length $n) . "\r\n");
        $c->get_until(qr/say$n/);
    }
    $c->put("0\r\n\r\n");
    $s->get_until(qr/0\r\n\r\n/);
    $s->put("0\r\n\r\n");
    like $c->get_until(qr/0\r\n\r\n/), qr/0\r\n\r\n$/,
        '20 turns within one exchange, then both ends';
}

# Much: nothing lost, nothing twice.
{
    my $size = 20_000_000;
    my $data = join '', map { pack 'N', $_ * 2654435761 % 2**32 }
        1 .. $size / 4;
    my $sum = md5_hex($data);
    my $o   = origin(sub ($c) {
        while (my $r = $c->get_request) {
            my $head = "HTTP/1.1 200 OK\r\nX-Sum: " . md5_hex($r->{body})
                . "\r\n";
            if ($r->{target} eq '/length') {
                $c->put("${head}Content-Length: $size\r\n\r\n$data");
            } elsif ($r->{target} eq '/chunks') {
                $c->put("${head}Transfer-Encoding: chunked\r\n\r\n");
                for (my ($at, $n) = (0, 1); $at < $size; $at += $n) {
                    $n = 1 + ($at * 7 + 13) % 90_000;
                    my $piece = substr $data, $at, $n;
                    $n = length $piece;
                    $c->put(sprintf "%x\r\n%s\r\n", $n, $piece);
                }
                $c->put("0\r\n\r\n");
            } elsif ($r->{target} eq '/close') {
                $c->put("${head}Connection: close\r\n\r\n$data");
                return;
            } else {
                $c->put("${head}Content-Length: 0\r\n\r\n");
            }
        }
    });
    my $url  = 'http://' . $o->addr;
    my $file = spew(scratch('data'), $data);
    for my $how (qw(length chunks close)) {
        my $r = curl($w, "$url/$how");
        is $r->{exit}, 0, "$how: 20 MB come down";
        is md5_hex($r->{out}), $sum, "$how: the same";
    }
    like curl($w, '-i', '-T', $file, "$url/up")->{out}, qr/^X-Sum: $sum/m,
        'length: 20 MB go up';
    like curl($w, '-i', '-T', $file, '-H', 'Transfer-Encoding: chunked',
        "$url/up")->{out}, qr/^X-Sum: $sum/m, 'chunks: 20 MB go up';
    my $r = curl($w, '-0', "$url/length");
    is md5_hex($r->{out}), $sum, 'HTTP/1.0: the same';
}

# A reader that stops holds its own origin back, and nobody else.
{
    my $l = listener();
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    my $size = 64 << 20;
    $s->put("HTTP/1.1 200 OK\r\nContent-Length: $size\r\n\r\n");
    my $sent = 0;
    my $part = 'z' x 65536;
    while ($sent < $size) {
        my $set = '';
        vec($set, fileno $s->{sock}, 1) = 1;
        last if select(undef, $set, undef, 0.3) == 0;
        my $n = syswrite $s->{sock}, $part;
        $sent += $n if $n;
    }
    ok $sent < $size, 'an origin is held back by a client that does not read';
    my (undef, $got) = through($w, $get,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    is $got->{body}, 'ok', 'others are served meanwhile';
    ok $w->status('VmRSS') < 200_000, 'and nothing is piled up';
    $c->reset;
    1 while $s->put($part);
    pass('a client that leaves ends it');
}

$w->stop;
done_testing;
