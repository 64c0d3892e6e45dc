#!/usr/bin/perl
# A message that was cut short never looks complete on the other side.
# RFC 9112 section 8, RFC 8446 section 6.1.
use v5.36;
use Test::More;
use Weir;

my $w   = Weir->start(set => ['intercept.enable=no']);
my $get = "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n";
my $old = "GET http://ORIGIN/x HTTP/1.0\r\nHost: ORIGIN\r\n\r\n";

my @answers = (
    [ 'length, FIN',    "Content-Length: 10\r\n\r\nhello",               0 ],
    [ 'length, RST',    "Content-Length: 10\r\n\r\nhello",               1 ],
    [ 'length, no byte', "Content-Length: 10\r\n\r\n",                   0 ],
    [ 'chunks, no last chunk',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",              0 ],
    [ 'chunks, RST', "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 1 ],
    [ 'chunks, inside one',
        "Transfer-Encoding: chunked\r\n\r\n8\r\nhello",                  0 ],
    [ 'chunks, inside a size',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1",             0 ],
    [ 'chunks, inside the last',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",         0 ],
    [ 'chunks, inside trailers',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n", 0 ],
    [ 'chunks, a bad size later',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",        0 ],
    [ 'until close, RST', "\r\nhello",                                   1 ],
);
for my $case (@answers) {
    my ($name, $text, $reset) = @$case;
    for my $client ([ '1.1', $get ], [ '1.0', $old ]) {
        my $l = listener();
        my $c = $w->client;
        $c->put($client->[1] =~ s/ORIGIN/$l->addr/ger);
        my $s = $l->accept;
        $s->get_request;
        $s->put("HTTP/1.1 200 OK\r\n$text");
        my $head = $c->get_head;
        # what follows at once may be known to be broken before anything went
        like $head, $name =~ /later/ ? qr/^(?:HTTP\/1.1 (?:200|502)|$)/
            : qr/^HTTP\/1.1 200/, "$name, $client->[0]: begins";
        next if $head !~ / 200/;
        my ($body) = $text =~ /(hello)/;
        my $first = $body ? $c->get_until(qr/hello/) : '';
        $reset ? $s->reset : $s->close;
        my $rest = $first . $c->get_eof;
        my $whole =
              $head =~ /content-length: (\d+)/i ? length $rest >= $1
            : $head =~ /transfer-encoding/i     ? $rest =~ /\r\n0+\r\n.*\r\n$/s
            :                                     $c->how eq 'eof';
        ok !$whole, "$name, $client->[0]: looks cut" or diag $head, $rest;
        isnt $c->how, 'open', "$name, $client->[0]: and ends";
    }
}

# ---- as curl sees it: 18 partial file, 56 reset, 52 nothing at all
{
    my $o = origin(sub ($c) {
        my $r = $c->get_request;
        my ($n) = $r->{target} =~ /(\d+)/;
        $c->put("HTTP/1.1 200 OK\r\n$answers[$n][1]");
        # reset only what has been read, or nothing may arrive at all
        $c->wait_cue("go$n");
        $answers[$n][2] ? $c->reset : $c->close;
    });
    for my $n (0 .. $#answers) {
        my $url = 'http://' . $o->addr . "/$n";
        cue($o, "go$n");
        my $r = curl($w, $url);
        ok $r->{exit} == 18 || $r->{exit} == 56 || $r->{code} == 502
            || $r->{exit} == 52,
            "$answers[$n][0]: curl tells" or diag explain $r;
    }
}

# ---- uploads
for my $case (
    [ 'length, FIN', "Content-Length: 10\r\n\r\nhello",                0 ],
    [ 'length, RST', "Content-Length: 10\r\n\r\nhello",                1 ],
    [ 'chunks, FIN', "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 0 ],
    [ 'chunks, RST', "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 1 ],
    [ 'chunks, inside one', "Transfer-Encoding: chunked\r\n\r\n8\r\nhello", 0 ],
    [ 'chunks, a bad size',
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",      0 ],
) {
    my ($name, $text, $reset) = @$case;
    my $l = listener();
    my $c = $w->client;
    $c->put(("POST http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n$text")
        =~ s/ORIGIN/$l->addr/ger);
    my $s    = $l->accept;
    my $seen = $s->get_until(qr/hello/);
    like $seen, qr/hello$/, "upload, $name: begins";
    $reset ? $c->reset : $c->shut;
    my $rest = $s->get_eof;
    unlike $rest, qr/^(?:\r\n)?0+\r\n/m, "upload, $name: looks cut";
    isnt $s->how, 'open', "upload, $name: and ends";
}

# ---- a client that goes away is not waited for
{
    my $l = listener();
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    $c->reset;
    is $s->get_eof, '', 'the client is gone before the answer:';
    isnt $s->how, 'open', 'the origin is let go';
}
{
    my $l = listener();
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    $s->put("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" . 'x' x 999);
    $c->get_until(qr/x{999}/);
    $c->reset;
    my $more = 'y' x 65536;
    my $sent = 0;
    $sent++ while $sent < 1000 && $s->put($more);
    ok $sent < 1000, 'a client gone within a body stops it';
}

# ---- through TLS: only a close_notify ends a body that ends by the close
{
    my $certs = certs();
    my $o     = origin(sub ($c) {
        my $r = $c->get_request;
        $c->put("HTTP/1.1 200 OK\r\n" . ($r->{target} =~ /chunked/
                ? "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
                : $r->{target} =~ /length/
                ? "Content-Length: 10\r\n\r\nhello" : "\r\nhello"));
        $c->wait_cue('go');
        $r->{target} =~ /cut/ ? $c->cut : $c->close;
    }, tls => $certs->{good});
    my $t = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    cue($o, 'go');
    for my $case ([ 'whole', 0 ], [ 'cut', 18, 56 ], [ 'chunked-cut', 18, 56 ],
        [ 'chunked-close', 18, 56 ], [ 'length-cut', 18, 56 ],
        [ 'length-close', 18, 56 ]) {
        my ($path, @exit) = @$case;
        my $r = curl($t, '--cacert', $t->ca, "https://good.test/$path");
        ok scalar(grep { $_ == $r->{exit} } @exit),
            "TLS, $path: curl ends with @exit" or diag explain $r;
        is $r->{out}, 'hello', "TLS, $path: what came went on";
        # until-close towards a client of HTTP/1.0
        $r = curl($t, '-0', '--cacert', $t->ca, "https://good.test/$path");
        ok scalar(grep { $_ == $r->{exit} } @exit),
            "TLS, $path, HTTP/1.0: curl ends with @exit" or diag explain $r;
    }
    $t->stop;
}

$w->stop;
done_testing;
