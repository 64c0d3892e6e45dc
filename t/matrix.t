#!/usr/bin/perl
# Every HTTP version with every other: the same list of cases for a client and
# an origin of HTTP/1.1, 2 and 3.  With MATRIX set the results are written to
# that file, as the table of doc/matrix.md.
use v5.36;
use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use Sides;
use Test::More;
use Weir;

my %name = (1 => 'HTTP/1.1', 2 => 'HTTP/2', 3 => 'HTTP/3');

# What a field list says, in order, of names in lower case.
sub values_of($message, $name)
{
    return join '|', map { $_->[1] } grep { lc $_->[0] eq $name }
        $message->{fields}->@*;
}

sub trailer($got, $name)
{
    return join '|', map { $_->[1] } grep { lc $_->[0] eq $name }
        ($got->{trailers} // [])->@*;
}

# A request without content and its answer, both sides' view.
sub ask_once($c, $o, $method, $status, $fields, %o)
{
    my $x = $c->ask($method, $o, '/', $o{ask} // []);
    my $y = $o->request;
    $y->answer($status, $fields, end => $o{end});
    if (defined $o{body}) {
        $y->data($o{body});
        $y->end;
    }
    my $head = $x->head // { status => 0, fields => [] };
    return ($head, $x->finish, $y);
}

# Megabytes, step by step.
sub carry($from, $to)
{
    my ($sum, $n) = (Digest::SHA->new(256), 0);
    for my $i (0 .. 255) {
        my $piece = chr($i) x (16000 + $i);
        $sum->add($piece);
        $n += length $piece;
        $from->data($piece);
        $to->more($n);
    }
    $from->end;
    my $got = $to->finish;
    ok $got->{whole}, 'whole';
    is length $got->{body}, $n, 'as long';
    is sha256_hex($got->{body}), $sum->hexdigest, 'the same bytes';
}

# ---- with any client and any origin --------------------------------------------

my @cases = (
['a request and its answer' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('GET', $o, '/a%20b?c=d', [ 'x-one', 'eins', 'accept',
        '*/*' ]);
    my $y = $o->request;
    is $y->{method}, 'GET', 'method';
    is $y->{path}, '/a%20b?c=d', 'path and query';
    is $y->{authority}, $o->{authority}, 'authority';
    is values_of($y, 'x-one'), 'eins', 'a field';
    is values_of($y, 'via'), ($cv == 1 ? '1.1' : $cv) . ' tester', 'Via';
    ok $y->finish->{whole}, 'without content';
    $y->answer(200, [ 'content-length', 4, 'x-two', 'zwei' ]);
    $y->data('down');
    $y->end;
    my $head = $x->head;
    is $head->{status}, 200, 'status';
    is values_of($head, 'x-two'), 'zwei', 'a field back';
    is values_of($head, 'content-length'), 4, 'the length stays';
    is values_of($head, 'via'), ($ov == 1 ? '1.1' : $ov) . ' tester',
        'Via of the answer';
    is_deeply $x->finish, { %{ $x->finish }, body => 'down', whole => 1 },
        'content';
}],
['content of known length' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [ 'content-length', 5 ], end => 0);
    $x->data('hello');
    $x->end;
    my $y = $o->request;
    is values_of($y, 'content-length'), 5, 'has its length';
    is $y->finish->{body}, 'hello', 'and is whole';
    $y->answer(200, [], end => 1);
    is $x->head->{status}, 200, 'answered';
    ok $x->finish->{whole}, 'an empty answer';
}],
['content of unknown length' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('PUT', $o, '/', [], end => 0);
    $x->data('hel');
    my $y = $o->request;
    is $y->more(3), 'hel', 'arrives as it is sent';
    $x->data('lo');
    $x->end;
    my $got = $y->finish;
    is $got->{body}, 'hello', 'all of it';
    ok $got->{whole}, 'to its end';
    $y->answer(200, []);
    $y->data('part, ');
    is $x->head->{status}, 200, 'the answer';
    is $x->more(6), 'part, ', 'arrives as it is sent';
    $y->data('rest');
    $y->end;
    is_deeply [ @{ $x->finish }{qw(body whole)} ], [ 'part, rest', 1 ],
        'to its end';
}],
['trailers' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [ 'te', 'trailers' ], end => 0);
    $x->data('up');
    $x->trailers('x-sum', '7', 'x-more', 'yes');
    my $y = $o->request;
    my $got = $y->finish;
    is $got->{body}, 'up', 'content';
    is trailer($got, 'x-sum'), 7, 'upwards';
    is trailer($got, 'x-more'), 'yes', 'both';
    $y->answer(200, [ 'trailer', 'x-sum' ]);
    $y->data('down');
    $y->trailers('x-sum', '9');
    is $x->head->{status}, 200, 'the answer';
    $got = $x->finish;
    is $got->{body}, 'down', 'its content';
    is trailer($got, 'x-sum'), 9, 'downwards';
    ok $got->{whole}, 'whole';
}],
['every 1xx' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('GET', $o, '/');
    my $y = $o->request;
    $y->answer(103, [ 'link', "</$_>" ]) for 1, 2;
    is values_of($x->head, 'link'), "</$_>", "103 number $_" for 1, 2;
    $y->answer(102);
    is $x->head->{status}, 102, 'a 102';
    $y->answer(199, [ 'x-odd', 1 ]);
    is values_of($x->head, 'x-odd'), 1, 'one that nobody knows';
    $y->answer(200, [], end => 1);
    is $x->head->{status}, 200, 'then the answer';
}],
['100-continue' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [ 'content-length', 2, 'expect',
        '100-continue' ], end => 0);
    my $y = $o->request;
    is values_of($y, 'expect'), '100-continue', 'Expect goes up';
    $y->answer(100);
    is $x->head->{status}, 100, '100 comes down';
    $x->data('up');
    $x->end;
    is $y->finish->{body}, 'up', 'then content goes up';
    $y->answer(200, [], end => 1);
    is $x->head->{status}, 200, 'and the answer comes';
}],
['a final answer instead of 100' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [ 'content-length', 2, 'expect',
        '100-continue' ], end => 0);
    my $y = $o->request;
    $y->answer(417, [ 'content-length', 2 ]);
    $y->data('no');
    $y->end;
    is $x->head->{status}, 417, 'comes without content having gone up';
    is $x->more(2), 'no', 'whole';
}],
['an early answer' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [], end => 0);
    $x->data('some');
    my $y = $o->request;
    $y->more(4);
    $y->answer(413, [ 'content-length', 2,
        ($ov == 1 ? ('connection', 'close') : ()) ]);
    $y->data('no');
    $y->end;
    $y->unwanted;
    is $x->head->{status}, 413, 'comes while content is sent';
    is $x->more(2), 'no', 'whole';
    ok $x->stopped, 'and what is still sent is stopped, without an error';
}],
['both ways at once' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [], end => 0);
    my $y = $o->request;
    $y->answer(200, []);
    is $x->head->{status}, 200, 'an answer before the content';
    for my $n (1 .. 5) {
        $x->data("up$n");
        is substr($y->more(3 * $n), -3), "up$n", "up $n";
        $y->data("down$n");
        is substr($x->more(5 * $n), -5), "down$n", "down $n";
    }
    $x->end;
    ok $y->finish->{whole}, 'the end up';
    $y->end;
    ok $x->finish->{whole}, 'the end down';
}],
['HEAD' => sub ($c, $o, $cv, $ov) {
    my ($head, $got) = ask_once($c, $o, 'HEAD', 200, [ 'content-length', 10 ],
        end => 1);
    is $head->{status}, 200, 'status';
    is values_of($head, 'content-length'), 10, 'the length of what is not sent';
    is_deeply [ @$got{qw(body whole)} ], [ '', 1 ], 'whole without content';
}],
['204 and 304' => sub ($c, $o, $cv, $ov) {
    for my $status (204, 304) {
        my ($head, $got) = ask_once($c, $o, 'GET', $status, [ 'etag', '"x"' ],
            end => 1);
        is $head->{status}, $status, "a $status";
        is values_of($head, 'etag'), '"x"', 'its field';
        is_deeply [ @$got{qw(body whole)} ], [ '', 1 ], 'no content';
    }
}],
['cookies' => sub ($c, $o, $cv, $ov) {
    my @crumbs = $cv == 1 ? ('cookie', 'a=1; b=2; c=3')
        : ('cookie', 'a=1', 'cookie', 'b=2', 'cookie', 'c=3');
    my ($head, $got, $y) = ask_once($c, $o, 'GET', 200, [ 'set-cookie', 'd=4',
        'set-cookie', 'e=5' ], end => 1, ask => \@crumbs);
    my $seen = values_of($y, 'cookie');
    is $seen =~ s/\|/; /gr, 'a=1; b=2; c=3', 'all crumbs, in order';
    unlike $seen, qr/\|/, 'in one field' if $ov == 1;
    is values_of($head, 'set-cookie'), 'd=4|e=5', 'Set-Cookie stays two';
}],
['fields of the connection stay' => sub ($c, $o, $cv, $ov) {
    my ($head, undef, $y) = ask_once($c, $o, 'GET', 200,
        [ 'x-far', 1, $ov == 1 ? ('Connection', 'x-hop', 'X-Hop', 1,
            'Keep-Alive', 'timeout=9') : () ], end => 1,
        ask => [ 'x-near', 1, $cv == 1 ? ('Connection', 'x-hop', 'X-Hop', 1,
            'Proxy-Connection', 'keep-alive') : () ]);
    is values_of($y, $_), '', "no $_ up" for qw(x-hop proxy-connection);
    is values_of($head, $_), '', "no $_ down" for qw(x-hop keep-alive);
    is values_of($y, 'x-near') . values_of($head, 'x-far'), 11, 'others pass';
}],
['a client that gives up' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('GET', $o, '/');
    my $y = $o->request;
    $y->answer(200, []);
    $y->data('some');
    $x->head;
    $x->more(4);
    $x->cut;
    ok $y->gone, 'the origin is let go';
}],
['a client that cuts its content' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [], end => 0);
    $x->data('some');
    my $y = $o->request;
    $y->more(4);
    $x->cut;
    ok !$y->finish->{whole}, 'the origin sees it cut';
}],
['an answer that is cut' => sub ($c, $o, $cv, $ov) {
    for my $fields ([ 'content-length', 10 ], []) {
        my $x = $c->ask('GET', $o, '/');
        my $y = $o->request;
        $y->answer(200, $fields);
        $y->data('some');
        is $x->head->{status}, 200, 'it begins';
        $x->more(4);
        $y->cut;
        my $got = $x->finish;
        is $got->{body}, 'some', 'what came is there';
        ok !$got->{whole}, 'and the client sees it cut';
    }
}],
['an origin that ends without a word' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [ 'content-length', 0 ]);
    my $y = $o->request;
    $y->cut;
    is $x->head->{status}, 502, 'a 502';
    ok $x->finish->{whole}, 'with its reason';
}],
['4 MB up' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('POST', $o, '/', [], end => 0);
    my $y = $o->request;
    carry($x, $y);
    $y->answer(200, [], end => 1);
    is $x->head->{status}, 200, 'answered';
}],
['4 MB down' => sub ($c, $o, $cv, $ov) {
    my $x = $c->ask('GET', $o, '/');
    my $y = $o->request;
    $y->answer(200, []);
    $x->head;
    carry($y, $x);
}],
['WebSocket' => sub ($c, $o, $cv, $ov) {
    my $x = $c->websocket($o, '/chat');
    my $y = $o->request;
    is $y->{path}, '/chat', 'asked for';
    is values_of($y, 'sec-websocket-version'), 13, 'its version';
    $y->accept_websocket;
    is $c->websocket_head($x), 200, 'accepted';
    for my $n (1 .. 3) {
        $x->data("ping$n");
        is substr($y->more(5 * $n), -5), "ping$n", "up $n";
        $y->data("pong$n");
        is substr($x->more(5 * $n), -5), "pong$n", "down $n";
    }
    $x->end;
    ok $y->finish->{whole}, 'its end up';
    $y->end;
    ok $x->finish->{whole}, 'and down';
}],
);

# ---- with any client, and a TCP server -------------------------------------------

my @tunnels = (
['CONNECT, half closed' => sub ($c, $l, $cv) {
    for my $first ('client', 'server') {
        my $x = $c->connect($l->addr);
        my $s = $l->accept;
        is $x->head->{status}, 200, 'it stands';
        $x->data('up');
        is $s->get(2), 'up', 'up';
        $s->put('down');
        is $x->more(4), 'down', 'down';
        if ($first eq 'client') {
            $x->end;
            is $s->get_eof, '', 'the end goes up';
            $s->put('more');
            is $x->more(8), 'downmore', 'while more comes down';
            $s->close;
            ok $x->finish->{whole}, 'until its end';
        } else {
            $s->shut;
            ok $x->finish->{whole}, 'the end comes down';
            $x->data('more');
            is $s->get(4), 'more', 'while more goes up';
            $x->end;
            is $s->get_eof, '', 'until its end';
        }
    }
}],
['CONNECT, reset' => sub ($c, $l, $cv) {
    my $x = $c->connect($l->addr);
    my $s = $l->accept;
    $x->head;
    $x->data('up');
    $s->get(2);
    $s->reset;
    my $got = $x->finish;
    ok !$got->{whole}, 'the client sees the server\'s reset';
    is $got->{reset}, 'CONNECT_ERROR', 'as CONNECT_ERROR' if $cv != 1;
    $x = $c->connect($l->addr);
    $s = $l->accept;
    $x->head;
    $x->data('up');
    $s->get(2);
    $x->cut;
    $s->get_eof;
    is $s->how, 'reset', 'the server sees the client\'s';
}],
['CONNECT to nobody' => sub ($c, $l, $cv) {
    my $x = $c->connect('127.0.0.1:' . closed_port());
    is $x->head->{status}, 502, 'a 502';
}],
);

# ---- the results -------------------------------------------------------------------

my %result; # case => pair => passed

sub attempt($case, $pair, $what, $try)
{
    $result{$case}{$pair} = subtest "$what: $case", sub {
        eval { $try->(); 1 } or fail "went through: $@";
    };
}

sub table($first, $columns, $list)
{
    my $text = join ' | ', "| $first", map({ $_->[1] } @$columns);
    $text .= " |\n|" . ' --- |' x (1 + @$columns) . "\n";
    for my $case (map { $_->[0] } @$list) {
        $text .= join(' | ', "| $case", map {
            $result{$case}{ $_->[0] } ? 'yes' : '**no**'
        } @$columns) . " |\n";
    }
    return $text;
}

my @clients = split ' ', $ENV{CLIENTS} // '1 2 3';
my @origins = split ' ', $ENV{ORIGINS} // '1 2 3';
my $w = Weir->start(set => [ sides_conf(@origins), 'proxy.via=tester',
    'intercept.enable=no' ],
    args => ['-v']);
for my $cv (@clients) {
    for my $ov (@origins) {
        for (grep { !$ENV{CASE} || $_->[0] =~ /$ENV{CASE}/ } @cases) {
            my ($case, $try) = @$_;
            attempt($case, "$cv$ov", "$name{$cv} to $name{$ov}",
                sub { $try->(client_of($cv, $w), origin_of($ov), $cv, $ov) });
        }
        like $w->wait_log(qr{version=\L$name{$cv}\E .* origin_version=\L$name{$ov}}),
            qr/exchange/, "$name{$cv} to $name{$ov}: in the log";
    }
    for (@tunnels) {
        my ($case, $try) = @$_;
        attempt($case, $cv, $name{$cv},
            sub { $try->(client_of($cv, $w), listener(), $cv) });
    }
}
diag $w->log if $ENV{CASE};
$w->stop;

if ($ENV{MATRIX}) {
    my @pairs = map {
        my $cv = $_;
        map { [ "$cv$_", ($cv == 1 ? '1.1' : $cv) . ' → ' . ($_ == 1 ? '1.1' : $_) ] } 1 .. 3
    } 1 .. 3;
    spew($ENV{MATRIX}, "# Versions that meet\n\n"
            . "What passes between a client and an origin of each HTTP version,"
            . " as `t/matrix.t`\nfound it (`make matrix` writes this file).\n\n"
            . table('client → origin', \@pairs, \@cases)
            . "\nTunnels, by the version of the client:\n\n"
            . table('client', [ map { [ $_, $name{$_} ] } 1 .. 3 ],
            \@tunnels));
}
done_testing;
