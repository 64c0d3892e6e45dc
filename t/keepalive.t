#!/usr/bin/perl
# Which connections are used again, and which never.  RFC 9112 section 9;
# RFC 9110 section 9.2.2 for the one retry.
use v5.36;
use Test::More;
use Weir;

my $w   = Weir->start(set => ['intercept.enable=no']);
my $ok  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

sub ask($c, $l, %o)
{
    my $method = $o{method} // 'GET';
    $c->put("$method http://${\ $l->addr}/ HTTP/1.1\r\nHost: x\r\n"
            . ($o{fields} // '') . "\r\n" . ($o{body} // ''));
}

# A request, answered by the origin's wire $s.
sub round($c, $l, $s, $answer = $ok, %o)
{
    ask($c, $l, %o);
    $s //= $l->accept;
    my $seen = $s->get_request;
    $s->put($answer);
    my $got = $c->get_answer;
    return ($s, $got, $seen);
}

# The same with whichever of @$wires weir uses, or a new one, which is added:
# a client has its answer a moment before its connection is given back.
sub round_any($c, $l, $wires)
{
    ask($c, $l);
    my $s = Weir::first_of($l, @$wires);
    my $new = $s == $l;
    push @$wires, $s = $l->accept if $new;
    $s->get_request;
    $s->put($ok);
    return ($c->get_answer, $new);
}

# ---- both sides are kept
{
    my $l = listener();
    my $c = $w->client;
    my ($s, $got) = round($c, $l, undef);
    for my $n (2 .. 5) {
        (undef, $got) = round($c, $l, $s);
        is $got->{body}, 'ok', "request $n: on the same two connections";
    }
    ok !$l->waiting, 'the origin saw one connection';
    my @wires = ($s);
    ok wait_for('another client to use a connection again', sub {
        my (undef, $new) = round_any($w->client, $l, \@wires);
        return !$new;
    }), 'another client uses the first one\'s';
    cmp_ok scalar(@wires), '<=', 4, 'without making many';
}
{ # a body on a reused connection
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    my (undef, $got, $seen) = round($c, $l, $s, $ok, method => 'POST',
        fields => "Content-Length: 4\r\n", body => 'body');
    is $seen->{body}, 'body', 'a POST on a connection that was used before';
}
{ # two at once need two
    my $l = listener();
    my ($c1, $c2) = ($w->client, $w->client);
    ask($c1, $l);
    my $s1 = $l->accept;
    $s1->get_request;
    ask($c2, $l);
    my $s2 = $l->accept;
    $s2->get_request;
    $s2->put($ok);
    is $c2->get_answer->{body}, 'ok', 'the second is not behind the first';
    $s1->put($ok);
    is $c1->get_answer->{body}, 'ok', 'the first';
}

# ---- not kept
for my $case (
    [ 'the origin closes', "HTTP/1.1 200 OK\r\nConnection: close\r\n"
            . "Content-Length: 2\r\n\r\nok" ],
    [ 'HTTP/1.0', "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" ],
    [ 'bytes nobody asked for', "${ok}rubbish" ],
    [ 'an answer nobody asked for', "$ok$ok" ],
    [ 'a body behind 204', "HTTP/1.1 204 No Content\r\n\r\nbody" ],
    [ 'a body behind 304', "HTTP/1.1 304 Not Modified\r\n"
            . "Content-Length: 4\r\n\r\nbody" ],
) {
    my ($name, $answer) = @$case;
    my $l = listener();
    my $c = $w->client;
    my ($s, $got) = round($c, $l, undef, $answer);
    like $got->{status}, qr/^(?:200|204|304)$/, "$name: the answer passes";
    $s->get_eof;
    isnt $s->how, 'open', "$name: the connection is closed";
    (undef, $got) = round($c, $l, undef);
    is $got->{body}, 'ok', "$name: the next request gets a new one";
}
{ # they may come later, too
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    $s->put($ok);
    my ($s2, $got, $seen) = round($c, $l, undef,
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal");
    is $got->{body}, 'real', 'an answer that came before the question is lost';
}
{ # an error within an answer
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef, "HTTP/1.1 200 OK\r\n"
            . "Transfer-Encoding: chunked\r\n\r\nzz\r\n");
    $s->get_eof;
    isnt $s->how, 'open', 'a broken answer ends its connection';
}
{ # an answer the client did not wait for
    my $l = listener();
    my $c = $w->client;
    ask($c, $l);
    my $s = $l->accept;
    $s->get_request;
    $c->reset;
    $s->get_eof;
    isnt $s->how, 'open', 'a client that leaves ends its upstream connection';
}
{
    my $l = listener();
    my $c = $w->client;
    my ($s, $got) = round($c, $l, undef, $ok, fields => "Connection: close\r\n");
    like field($got, 'connection'), qr/close/i, 'close is answered by close';
    is $c->get_eof, '', 'and done';
    my @wires = ($s);
    ok wait_for('the connection to be used again', sub {
        my (undef, $new) = round_any($w->client, $l, \@wires);
        return !$new;
    }), 'which is the client\'s wish, not the origin\'s';
}

# ---- the one retry, RFC 9110 section 9.2.2
{ # closed while it lay idle: noticed before it is used, whatever the method
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    $s->close;
    my (undef, $got) = round($c, $l, undef, $ok, method => 'POST',
        fields => "Content-Length: 4\r\n", body => 'body');
    is $got->{body}, 'ok', 'a dead idle connection is not used';
}
{ # closed when the request came: a GET goes again
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    ask($c, $l);
    $s->get_request;
    $s->close;
    my $s2 = $l->accept;
    is $s2->get_request->{method}, 'GET', 'a GET is sent again';
    $s2->put($ok);
    is $c->get_answer->{body}, 'ok', 'and answered';
    # once only, and on a new connection
    ask($c, $l);
    $s2->get_request;
    $s2->reset;
    my $s3 = $l->accept;
    $s3->get_request;
    $s3->close;
    my $got = $c->get_answer;
    is $got->{status}, 502, 'the second failure is told';
    ok !$l->waiting, 'there was no third try';
}
{
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    ask($c, $l, method => 'POST', fields => "Content-Length: 4\r\n",
        body => 'body');
    $s->get_request;
    $s->close;
    my $got = $c->get_answer;
    is $got->{status}, 502, 'a POST that may have been done is not repeated';
    ok !$l->waiting, 'it was sent once';
}
{
    my $l = listener();
    my $c = $w->client;
    ask($c, $l);
    my $s = $l->accept;
    $s->get_request;
    $s->close;
    is $c->get_answer->{status}, 502, 'a new connection that fails is told';
    ok !$l->waiting, 'and not tried again';
}
{ # part of an answer came: it is too late to start again
    my $l = listener();
    my $c = $w->client;
    my ($s) = round($c, $l, undef);
    ask($c, $l);
    $s->get_request;
    $s->put('HTTP/1.1 200 O');
    $s->close;
    is $c->get_answer->{status}, 502, 'half a head is an answer that failed';
    ok !$l->waiting, 'not asked again';
}

# ---- authentication that belongs to a connection, RFC 4559 section 6
for my $scheme ('NTLM', 'Negotiate abcd==') {
    my $l = listener();
    my ($c1, $c2) = ($w->client, $w->client);
    my ($s1) = round($c1, $l, undef, "HTTP/1.1 401 Unauthorized\r\n"
            . "WWW-Authenticate: $scheme\r\nContent-Length: 0\r\n\r\n");
    ask($c2, $l);
    my $s2 = $l->accept;
    $s2->get_request;
    $s2->put($ok);
    is $c2->get_answer->{body}, 'ok',
        "$scheme: another client does not get that connection";
}

# ---- limits of the cache
{
    my $short = Weir->start(set => [ 'intercept.enable=no',
        'upstream.reuse_s=1', 'proxy.idle_s=2' ]);
    my $l = listener();
    my $c = $short->client;
    my ($s) = round($c, $l, undef);
    is $s->get_eof, '', 'an idle upstream connection is closed after reuse_s';
    is $s->how, 'eof', 'in order';
    is $c->get_eof, '', 'an idle client after idle_s';
    is $c->how, 'eof', 'in order';
    my $silent = $short->client;
    is $silent->get_eof, '', 'a client that never says anything too';
    $short->stop;
}
{
    my $one = Weir->start(set =>
            [ 'intercept.enable=no', 'upstream.reuse_per_origin=1' ]);
    my $l = listener();
    my @c = map { $one->client } 1, 2;
    my @s;
    for my $c (@c) {
        ask($c, $l);
        push @s, $l->accept;
        $s[-1]->get_request;
    }
    $s[$_]->put($ok), $c[$_]->get_answer for 0, 1;
    my $old = Weir::first_of(@s);
    is $old->get_eof, '', 'reuse_per_origin: one of two is closed';
    my (undef, $got) = round($c[0], $l, $old == $s[0] ? $s[1] : $s[0]);
    is $got->{body}, 'ok', 'the other one is used';
    $one->stop;
}
{ # idle clients hold no worker: twenty share two
    my $few = Weir->start(set => [ 'intercept.enable=no', 'proxy.workers=2' ]);
    my $l = listener();
    my @c = map { $few->client } 1 .. 20;
    my @wires;
    for my $turn (1 .. 2) {
        for my $c (@c) {
            my ($got) = round_any($c, $l, \@wires);
            is $got->{body}, 'ok', 'one of 20 kept clients' if $turn == 2;
        }
    }
    $few->stop;
}

{ # what follows a good request is none: its origin is kept for others
    my $l   = listener();
    my $url = "http://${\ $l->addr}/";
    my $c   = $w->client;
    $c->put(request('GET', $url) . "no request\r\n\r\n");
    my $s = $l->accept;
    $s->get_request;
    $s->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    is $c->get_answer->{status}, 200, 'a good request';
    is $c->get_answer->{status}, 400, 'and a bad one behind it';
    $c->get_eof;
    my $other = $w->client;
    $other->put(request('GET', $url));
    is Weir::first_of($l, $s), $s, 'the connection to the origin is not lost';
}

$w->stop;
done_testing;
