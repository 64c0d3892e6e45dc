#!/usr/bin/perl
# HTTP/3 with origins: pairings, QUIC beside TCP, and what becomes of a request
# when one of them fails.
use v5.36;
use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H2;
use Weir::H3;

my $certs = certs();
my @hosts = map { "o$_.good.test" } 1 .. 30;
my (%tcp, %cert); # listeners of the same port

# The next origin: its name, and where QUIC is accepted.  Its TCP is in %tcp.
# %o: as Weir::H3->listener; quic => 0: none.
my (@ready, @resolve);
for my $host (@hosts) {
    $tcp{$host} = listener();
    push @resolve, "resolve.$host=" . $tcp{$host}->addr;
}

sub next_origin(%o)
{
    my $host = shift @hosts;
    my $l = $o{quic} // 1
        ? Weir::H3->listener(%o, port => $tcp{$host}->port) : undef;
    return ($host, $l, $tcp{$host});
}

my @set = (@resolve, "upstream.upstream_ca=$certs->{ca}{cert}",
    'proxy.via=tester', 'upstream.response_s=8', 'upstream.connect_s=8');
my $w = Weir->start(set => [ @set, 'upstream.http3=*.good.test' ],
    args => ['-v']);

sub client(%o) { return Weir::H2->client($w->client, %o) }

sub get($host, $path = '/', $method = 'GET')
{
    return Weir::H2::get($host, $path, $method, 'https');
}

sub fields_of($s, $name)
{
    return join '|', map { $_->[1] } grep { $_->[0] eq $name }
        $s->{fields}->@*;
}

# Ask by HTTP/1; the answer is yet to come.
sub ask_h1($via, $host, $path = '/', %o)
{
    my $c = $via->client;
    $c->put(request($o{method} // 'GET', "https://$host$path",
        $o{fields} // [], $o{body} // ''));
    return $c;
}

# The origin's TCP side, in TLS.
sub over_tcp($tcp, $cert = 'good')
{
    my $s = $tcp->accept;
    $s->tls_server($certs->{$cert}->%*, alpn => ['http/1.1']);
    return $s;
}

my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntcp";

{ # HTTP/1 client
    my ($host, $l, $tcp) = next_origin();
    my $c = $w->client;
    $c->put("POST https://$host/a?b HTTP/1.1\r\nHost: x\r\n"
            . "X-One: 1\r\nCookie: a=1; b=2\r\nConnection: close, X-Hop\r\n"
            . "X-Hop: 1\r\nTE: trailers\r\nConnection: TE\r\n"
            . "Transfer-Encoding: chunked\r\n\r\n"
            . "2\r\nup\r\n0\r\nX-Sum: 7\r\n\r\n");
    my $o = $l->accept;
    my $s = $o->next_request;
    is $o->{alpn}, 'h3', 'h1 to h3: ALPN';
    is $o->{sni}, $host, 'SNI';
    is $s->{head}{':method'}, 'POST', 'method';
    is $s->{head}{':path'}, '/a?b', 'path';
    is $s->{head}{':authority'}, $host, 'Host becomes :authority';
    is $s->{head}{':scheme'}, 'https', 'scheme';
    is fields_of($s, 'cookie'), 'a=1|b=2', 'Cookie becomes crumbs';
    is fields_of($s, 'x-one'), '1', 'lower case';
    is fields_of($s, 'te'), 'trailers', 'te: trailers';
    is fields_of($s, 'alt-used'), '', 'no Alt-Used: nobody said Alt-Svc';
    is join('', map { fields_of($s, $_) }
            qw(connection x-hop transfer-encoding host)), '', 'no hop fields';
    is fields_of($s, 'via'), '1.1 tester', 'Via';
    $o->until(sub { $s->{end} });
    is $s->{body}, 'up', 'content';
    is_deeply $s->{trailers}, [ [ 'x-sum', 7 ] ], 'trailers';
    $o->put($s->{id}, 'HEADERS', Weir::H3::qpack(':status', 103, 'link',
        '</a>'));
    $o->reply($s->{id}, 200, [ 'x-two', 2, 'set-cookie', 'a', 'set-cookie',
        'b' ], 'down', open => 1);
    $o->trailers($s->{id}, 'x-sum', 9);
    is $c->get_answer->{status}, 103, 'an interim answer';
    my $got = $c->get_answer;
    is $got->{status}, 200, 'status';
    is $got->{body}, 'down', 'content, chunked';
    is_deeply $got->{trailers}, [ [ 'x-sum', 9 ] ], 'trailers back';
    is join('|', fields($got, 'set-cookie')), 'a|b', 'Set-Cookie';
    is field($got, 'via'), '3 tester', 'Via says HTTP/3';
    like $w->wait_log(qr/exchange .* target=\S+a\?b /),
        qr/version=http\/1\.1 .* origin_version=http\/3/, 'the log';
}
{ # many clients, one connection
    my ($host, $l) = next_origin();
    my @c  = map { client() } 1 .. 5;
    my @id = map { $_->request([ get($host) ]) } @c;
    my $o  = $l->accept;
    for (@c) {
        my $s = $o->next_request;
        $o->reply($s->{id}, 200, [], "stream $s->{id}");
    }
    my @got = map { $c[$_]->answer($id[$_])->{body} } 0 .. 4;
    is scalar(grep { /^stream \d+$/ } @got), 5,
        'h2 to h3: five clients are answered';
    ok !$l->waiting, 'over one connection';
    like $w->wait_log(qr/exchange .*\Q$host\E/),
        qr/version=http\/2 .* origin_version=http\/3/, 'the log';
}
{ # an origin that allows few streams
    my ($host, $l) = next_origin(wire => { streams => 2 });
    my $c  = client();
    my @id = map { $c->request([ get($host, "/$_") ]) } 1 .. 3;
    my $o  = $l->accept;
    my @s  = map { $o->next_request } 1 .. 2;
    my $o2 = $l->accept;
    my $s3 = $o2->next_request;
    $_->[0]->reply($_->[1]{id}, 200, [], $_->[1]{head}{':path'})
        for [ $o, $s[0] ], [ $o, $s[1] ], [ $o2, $s3 ];
    is join('', map { $c->answer($_)->{body} } @id), '/1/2/3',
        'an origin that allows two streams at once: another connection';
    @id = map { $c->request([ get($host, "/$_") ]) } 4 .. 5;
    my %by;
    $o->until(sub {
        for my $at ($o, $o2) {
            for my $s (values $at->{streams}->%*) {
                next if $s->{id} & 2 || $s->{seen} || !$s->{heads}->@*;
                $s->{seen} = 1;
                $at->reply($s->{id}, 200, [], $s->{head}{':path'});
                $by{ $s->{head}{':path'} } = 1;
            }
        }
        return keys %by == 2;
    });
    is join('', map { $c->answer($_)->{body} } @id), '/4/5',
        'which has room again, once they are answered';
}
{ # content both ways
    my ($host, $l) = next_origin();
    my $up   = join '', map { chr(($_ * 7 + ($_ >> 8)) & 255) } 1 .. 3_000_000;
    my $file = spew(scratch('up'), $up);
    my $c = start_process([ 'curl', '-q', '-sS', '-x', 'http://' . $w->addr,
        '--cacert', $w->ca, '-T', $file, "https://$host/" ]);
    my $o = $l->accept;
    my $s = $o->next_request;
    is fields_of($s, 'content-length'), length $up, 'content-length';
    $o->until(sub { $s->{end} });
    is sha256_hex($s->{body}), sha256_hex($up), '3 MB up';
    $o->reply($s->{id}, 200, [ 'content-length', length $up ], $up);
    is reap($c), 0, 'curl is content';
    is sha256_hex(slurp($c->{out})), sha256_hex($up), '3 MB down';
}
{ # a client that waits for 100 (Continue)
    my ($host, $l) = next_origin();
    my $c = ask_h1($w, $host, '/', method => 'PUT',
        fields => [ 'Expect: 100-continue', 'Content-Length: 4' ]);
    my $o = $l->accept;
    my $s = $o->next_request;
    is fields_of($s, 'expect'), '100-continue', 'Expect goes up';
    $o->put($s->{id}, 'HEADERS', Weir::H3::qpack(':status', 100));
    is $c->get_answer->{status}, 100, '100 comes down';
    $c->put('body');
    $o->until(sub { $s->{end} });
    is $s->{body}, 'body', 'then the content';
    $o->reply($s->{id}, 201);
    is $c->get_answer->{status}, 201, 'then the answer';
}
{ # an answer before the request's end
    my ($host, $l) = next_origin();
    my $c  = client();
    my $id = $c->request([ get($host, '/', 'POST') ], end => 0);
    $c->data($id, 'first');
    my $o = $l->accept;
    my $s = $o->next_request;
    $o->reply($s->{id}, 413, [], 'enough');
    $o->stop_stream($s->{id}, 'NO_ERROR');
    my $got = $c->answer($id);
    is "$got->{status} $got->{body}", '413 enough',
        'STOP_SENDING behind an early answer does not harm it';
}
{ # both ways at once
    my ($host, $l) = next_origin();
    my $c  = client();
    my $id = $c->request([ get($host, '/', 'POST') ], end => 0);
    my $o  = $l->accept;
    my $s  = $o->next_request;
    my $got = $c->stream($id);
    $o->reply($s->{id}, 200, [], 'a', open => 1);
    ok $c->until(sub { $got->{body} eq 'a' }), 'the answer begins at once';
    for my $n (1 .. 3) {
        $c->data($id, "ping $n");
        ok $o->until(sub { $s->{body} =~ /ping $n$/ }), "up $n";
        $o->data($s->{id}, "pong $n");
        ok $c->until(sub { $got->{body} =~ /pong $n$/ }), "down $n";
    }
    $c->data($id, '', 1);
    ok $o->until(sub { $s->{end} }), 'the end goes up';
    $o->data($s->{id}, '', 1);
    ok $c->until(sub { $got->{end} }), 'and comes down';
}
{ # answers without content
    my ($host, $l) = next_origin();
    my $o;
    for my $case ([ HEAD => 200, 'content-length', 9 ], [ GET => 204 ],
        [ GET => 304, 'etag', '"x"' ]) {
        my ($method, $status, @fields) = @$case;
        my $c = ask_h1($w, $host, '/', method => $method);
        $o //= $l->accept;
        my $s = $o->next_request;
        $o->reply($s->{id}, $status, \@fields);
        my $got = $c->get_answer(head => $method eq 'HEAD');
        is $got->{status}, $status, "$method $status";
        is field($got, 'content-length') // '', $fields[1] // '' eq '9'
            ? 9 : '', 'its length' if $method eq 'HEAD';
        $c->put(request('GET', "https://$host/next"));
        $s = $o->next_request;
        $o->reply($s->{id}, 200, [], 'next');
        is $c->get_answer->{body}, 'next', 'and the connection goes on';
    }
}
{ # resets
    my ($host, $l) = next_origin();
    my $c = ask_h1($w, $host, '/', method => 'POST', fields =>
        ['Content-Length: 2'], body => 'hi');
    my $o = $l->accept;
    my $s = $o->next_request;
    $o->until(sub { $s->{end} });
    $o->reset_stream($s->{id}, 'INTERNAL_ERROR');
    is $c->get_answer->{status}, 502, 'reset before the answer: 502';
    $c = ask_h1($w, $host);
    $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'part', open => 1);
    is $c->get_head =~ /^HTTP\/1.1 200/, 1, 'reset within the answer';
    $o->drained($s->{id});
    $o->reset_stream($s->{id}, 'INTERNAL_ERROR');
    unlike $c->get_eof, qr/\r\n0\r\n/, 'HTTP/1: the last chunk is missing';
    $c = client();
    my $id = $c->request([ get($host) ]);
    $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'part', open => 1);
    $c->until(sub { $c->stream($id)->{body} eq 'part' });
    $o->reset_stream($s->{id}, 'INTERNAL_ERROR');
    is $c->answer($id)->{reset}, 'INTERNAL_ERROR', 'HTTP/2: a reset';
    $id = $c->request([ get($host) ]);
    $s  = $o->next_request;
    $c->put('RST_STREAM', 0, $id, pack 'N', 8);
    $o->until(sub { $s->{reset} || $s->{stopped} });
    is $s->{stopped} // $s->{reset}, 'REQUEST_CANCELLED',
        'a client that leaves cancels the request';
    $id = $c->request([ get($host, '/last') ]);
    $s  = $o->next_request;
    $o->reply($s->{id}, 200, [], 'still here');
    is $c->answer($id)->{body}, 'still here', 'others do not notice';
}
for my $method ('GET', 'POST') { # rejected
    my ($host, $l, $tcp) = next_origin();
    my $c  = client();
    my $id = $c->request([ get($host, '/', $method) ]);
    my $o  = $l->accept;
    my $s  = $o->next_request;
    $o->reset_stream($s->{id}, 'REQUEST_REJECTED');
    $o->stop_stream($s->{id}, 'REQUEST_REJECTED');
    my $t = over_tcp($tcp);
    is $t->get_request->{method}, $method, "$method: rejected: over TCP";
    $t->put($ok);
    is $c->answer($id)->{body}, 'tcp', 'and answered';
}
{ # rejected by an origin that has no TCP
    my ($host, $l, $tcp) = next_origin();
    close $tcp->{sock};
    my $c  = client();
    my $id = $c->request([ get($host) ]);
    my $o  = $l->accept;
    my $s  = $o->next_request;
    $o->reset_stream($s->{id}, 'REQUEST_REJECTED');
    $o->stop_stream($s->{id}, 'REQUEST_REJECTED');
    $s = $o->next_request;
    ok $s, 'rejected, and no TCP: it is sent again';
    $o->reply($s->{id}, 200, [], 'quic');
    is $c->answer($id)->{body}, 'quic', 'and answered';
}
for my $method ('GET', 'POST') { # GOAWAY
    my ($host, $l, $tcp) = next_origin();
    my $c  = client();
    my @id = map { $c->request([ get($host, "/$_", $method) ]) } 1 .. 2;
    my $o  = $l->accept;
    my $s1 = $o->next_request;
    my $s2 = $o->next_request;
    $o->put($o->{control}, 'GOAWAY', Weir::H3::varint($s2->{id}));
    my $t = over_tcp($tcp);
    is $t->get_request->{target}, $s2->{head}{':path'},
        "$method: GOAWAY before it was processed: over TCP";
    $t->put($ok);
    $o->reply($s1->{id}, 200, [], 'quic');
    is join(' ', sort map { $c->answer($_)->{body} } @id), 'quic tcp',
        'the other one is answered where it was';
}
{ # an origin that closes, or goes without a word
    my ($host, $l, $tcp) = next_origin();
    my $c  = client();
    my $id = $c->request([ get($host, '/one') ]);
    my $o  = $l->accept;
    my $s  = $o->next_request;
    $o->reply($s->{id}, 200, [], 'one');
    is $c->answer($id)->{body}, 'one', 'a first request';
    $id = $c->request([ get($host, '/two') ]);
    $s  = $o->next_request;
    $o->close('NO_ERROR');
    my $t = over_tcp($tcp);
    is $t->get_request->{target}, '/two', 'closed: a GET is sent again';
    $t->put($ok);
    is $c->answer($id)->{body}, 'tcp', 'and answered';
}
{
    my ($host, $l, $tcp) = next_origin();
    my $c  = client();
    my $id = $c->request([ get($host) ]);
    my $o  = $l->accept;
    my $s  = $o->next_request;
    $o->reply($s->{id}, 200, [], 'part', open => 1);
    $c->until(sub { $c->stream($id)->{body} eq 'part' });
    $o->close('INTERNAL_ERROR');
    ok $c->answer($id)->{reset}, 'closed within an answer: it is cut';
}
for my $bad ('wrong', 'expired', 'self') { # certificates
    my ($host, $l, $tcp) = next_origin(cert => $certs->{$bad});
    my $c = ask_h1($w, $host);
    my $s = $tcp->accept;
    eval { $s->tls_server($certs->{$bad}->%*) };
    my $got = $c->get_answer;
    is $got->{status}, 502, "$bad certificate: 502";
    like field($got, 'proxy-status'), qr/tls_certificate_error/,
        'which says so, as for TCP';
}
{
    my ($host, $l, $tcp) = next_origin(cert => $certs->{wrong});
    close $tcp->{sock};
    my $got = ask_h1($w, $host)->get_answer;
    is $got->{status}, 502, 'wrong certificate, and no TCP: 502';
    like field($got, 'proxy-status'), qr/tls_certificate_error/,
        'which tells what was found';
}
$w->stop;
done_testing;
