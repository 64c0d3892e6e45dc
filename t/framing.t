#!/usr/bin/perl
# Where messages end, what stands around them: chunks, trailers, interim
# answers, pipelines.  RFC 9112 sections 6, 7, 9.3; RFC 9110 sections 10.1, 15.2.
use v5.36;
use Test::More;
use Weir;

my $w   = Weir->start(set => ['intercept.enable=no']);
my $ok  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
my $get = "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n\r\n";
my $post = "POST http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\n";

# ---- chunks
{
    my ($seen) = through($w, "${post}Transfer-Encoding: chunked\r\n\r\n"
            . "3;name=value;other=\"q\\\"uoted\"\r\nabc\r\n"
            . "00A ; x\r\n0123456789\r\n0;last\r\n\r\n", $ok);
    is $seen->{body}, 'abc0123456789', 'request chunks';
    is $seen->{extensions}, undef, 'their extensions are dropped';
    is field($seen, 'content-length'), undef, 'no length beside chunks';
}
{
    my (undef, $got, $c) = through($w, $get,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "3;a=b\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    is $got->{body}, 'abcdefg', 'answer chunks';
    is $got->{extensions}, undef, 'their extensions are dropped';
    ok $got->{complete}, 'and there is a last chunk';
    my (undef, $next) = through($w, $get, $ok, client => $c);
    is $next->{body}, 'ok', 'the connection goes on after chunks';
}
{
    my ($seen) = through($w, "${post}transfer-encoding: CHUNKED\r\n\r\n"
            . "2\r\nab\r\n0\r\n\r\n", $ok);
    is $seen->{body}, 'ab', 'codings are named in any case';
}
{
    my ($seen) = through($w, "${post}Content-Length: 0005\r\n\r\nhello", $ok);
    is $seen->{body}, 'hello', 'a length with zeros before';
}
{ # every cut of an answer gives the same answer
    my $l   = listener();
    my $raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n"
        . "\r\n5\r\nhello\r\n1;x\r\n!\r\n0\r\nT: v\r\n\r\n";
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    my $bad = 0;
    for my $cut (1 .. length($raw) - 1) {
        $s->put(substr $raw, 0, $cut);
        # the client's own head comes only when weir has read to the cut
        $s->put(substr $raw, $cut);
        my $got = $c->get_answer;
        $bad++ if $got->{body} ne 'hello!' || !$got->{complete};
        last   if $cut == length($raw) - 1;
        $c->put($get =~ s/ORIGIN/$l->addr/ger);
        $s = $l->accept if $l->waiting;
        $s->get_request;
    }
    is $bad, 0, 'an answer may come in any two pieces';
}
{ # a request byte by byte
    my $l = listener();
    my $c = $w->client;
    $c->put($_) for split //, ("${post}Transfer-Encoding: chunked\r\n\r\n"
        . "5;e=1\r\nhello\r\n0\r\nX: y\r\n\r\n") =~ s/ORIGIN/$l->addr/ger;
    my $s    = $l->accept;
    my $seen = $s->get_request;
    is $seen->{body}, 'hello', 'a request may come byte by byte';
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'and is answered';
}

# ---- trailers, RFC 9110 section 6.5
{
    my ($seen) = through($w, "${post}Transfer-Encoding: chunked\r\n"
            . "Trailer: X-Sum, X-Sign\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n"
            . "x-SIGN: 2\r\n\r\n", $ok);
    is_deeply $seen->{trailers}, [ ['X-Sum', 1], ['x-SIGN', 2] ],
        'trailers go up';
    is field($seen, 'trailer'), 'X-Sum, X-Sign', 'announced as they were';
}
{
    my ($seen, $got) = through($w,
        "GET http://ORIGIN/x HTTP/1.1\r\nHost: ORIGIN\r\nTE: trailers\r\n"
            . "Connection: TE\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n"
            . "\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n");
    is field($seen, 'te'), 'trailers', 'TE: trailers goes up';
    like field($seen, 'connection'), qr/\bTE\b/i, 'named by Connection';
    is_deeply $got->{trailers}, [ ['X-Sum', 1] ], 'trailers come down';
    is field($got, 'trailer'), 'X-Sum', 'announced';
}
{
    my (undef, $got) = through($w, $get,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n");
    ok $got->{complete}, 'without TE: trailers the answer is complete';
    is_deeply $got->{trailers}, [], 'and has no trailers';
}
{
    my ($seen) = through($w, "${post}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
            . "0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\n"
            . "Host: elsewhere\r\nX-Good: 1\r\n\r\n", $ok);
    is_deeply $seen->{trailers}, [ ['X-Good', 1] ],
        'fields that frame or route are no trailers';
}
{
    my (undef, $got) = through($w, "GET http://ORIGIN/x HTTP/1.0\r\nHost: ORIGIN"
            . "\r\nTE: trailers\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n");
    is $got->{body}, 'ab', 'a 1.0 client gets the body without trailers';
}

# ---- interim answers
{
    my $l = listener();
    my $c = $w->client;
    $c->put($get =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    for my $n (1, 2) {
        $s->put("HTTP/1.1 103 Early Hints\r\nLink: </$n>; rel=preload\r\n\r\n");
        my $r = $c->get_answer;
        is $r->{status}, 103, "103 number $n passes at once";
        is field($r, 'link'), "</$n>; rel=preload", 'with its fields';
    }
    $s->put("HTTP/1.1 102 Processing\r\n\r\n$ok");
    is $c->get_answer->{status}, 102, '102 passes';
    my $r = $c->get_answer;
    is "$r->{status} $r->{body}", '200 ok', 'then the answer';
}
{
    my (undef, $got) = through($w, "GET http://ORIGIN/x HTTP/1.0\r\n"
            . "Host: ORIGIN\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n$ok");
    is $got->{status}, 200, 'a 1.0 client gets no interim answer';
}
{ # Expect is end to end: the client's 100 is the origin's
    my $l = listener();
    my $c = $w->client;
    $c->put(("${post}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        =~ s/ORIGIN/$l->addr/ger);
    my $s    = $l->accept;
    my $head = $s->get_head;
    like $head, qr/^Expect: 100-continue\r$/mi, 'Expect goes to the origin';
    ok $c->silent(0.2), 'no 100 before the origin says so';
    $s->put("HTTP/1.1 100 Continue\r\n\r\n");
    is $c->get_answer->{status}, 100, 'the 100 passes';
    $c->put('body');
    is $s->get(4), 'body', 'then the body';
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'then the answer';
}
{
    my $l = listener();
    my $c = $w->client;
    $c->put(("${post}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_head;
    $s->put("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno");
    my $r = $c->get_answer;
    is "$r->{status} $r->{body}", '417 no', 'a refusal instead of a 100';
    is $c->get_eof, '', 'then the connection ends:';
    is $c->how, 'eof', 'nobody knows whether a body follows';
}
{ # no 100 to somebody who expects none (RFC 9110 section 10.1.1)
    my ($seen, $got) = through($w, "${post}Content-Length: 4\r\n\r\nbody", $ok);
    is $got->{status}, 200, 'a body without Expect is answered directly';
}

# ---- an answer that does not wait for the request
{
    my $l = listener();
    my $c = $w->client;
    $c->put(("${post}Content-Length: 1000000\r\n\r\n" . 'x' x 1000)
        =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_head;
    is length $s->get(1000), 1000, 'the beginning of the body is there';
    $s->put("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n"
            . "Connection: close\r\n\r\nbig");
    my $r = $c->get_answer;
    is "$r->{status} $r->{body}", '413 big', 'an early answer arrives';
    ok $r->{complete}, 'complete, while the client could still send';
    $s->close;
    $c->get_eof;
    isnt $c->how, 'open', 'and the client is let go';
}
{ # early answer, upload goes on to its end, then another request
    my $l = listener();
    my $c = $w->client;
    $c->put(("${post}Content-Length: 10\r\n\r\n12345") =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_head;
    is $s->get(5), '12345', 'half a body';
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'answered early';
    if ($c->put('67890')) {
        my $rest = $s->get(5);
        ok $rest eq '67890' || $s->how ne 'open',
            'the rest is carried, or the exchange is over';
    }
}

{ # both bodies are open: one that moves keeps the other, silent one
    my $short = Weir->start(set => [ 'intercept.enable=no', 'proxy.idle_s=3' ]);
    my $l = listener();
    my $c = $short->client;
    $c->put(("${post}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_until(qr/a\r\n/);
    $s->put("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            . "5\r\nfirst\r\n");
    $c->get_until(qr/first\r\n/);
    for (1 .. 11) {
        $c->put("1\r\nb\r\n");
        $s->get_until(qr/b\r\n/);
        select undef, undef, undef, 0.3; # the rhythm is what is tried
    }
    $c->put("0\r\n\r\n");
    like $s->get_until(qr/0\r\n\r\n/), qr/0\r\n/, 'a long upload arrives';
    $s->put("4\r\nlast\r\n0\r\n\r\n");
    like $c->get_until(qr/0\r\n\r\n/), qr/last/, 'and what it was waiting for';
    $short->stop;
}

# ---- pipelines, RFC 9112 section 9.3.2
{
    my $o = origin(sub ($c) {
        while (my $r = $c->get_request) {
            my $body = "$r->{target}:$r->{body}";
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
                    . "\r\n\r\n$body");
        }
    });
    my $c = $w->client;
    $c->put(join '', map {
        my $body = "body $_";
        $_ % 3
            ? "GET http://${\ $o->addr}/$_ HTTP/1.1\r\nHost: x\r\n\r\n"
            : "POST http://${\ $o->addr}/$_ HTTP/1.1\r\nHost: x\r\n"
            . "Content-Length: " . length($body) . "\r\n\r\n$body"
    } 1 .. 30);
    my @got  = map { $c->get_answer->{body} } 1 .. 30;
    my @want = map { "/$_:" . ($_ % 3 ? '' : "body $_") } 1 .. 30;
    is_deeply \@got, \@want, '30 pipelined requests are answered in order';
}
{
    my $l = listener();
    my $c = $w->client;
    $c->put((("$get" =~ s/x HTTP/1 HTTP/r) . "GARBAGE\r\n\r\n")
        =~ s/ORIGIN/$l->addr/ger);
    my $s = $l->accept;
    $s->get_request;
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'rubbish behind a request: it is answered';
    is $c->get_answer->{status}, 400, 'then the rubbish';
    is $c->get_eof, '', 'then nothing';
}

$w->stop;
done_testing;
