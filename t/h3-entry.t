#!/usr/bin/perl
# HTTP/3 connections of clients: where they come in, whose name they ask for,
# and how they end.  What streams carry is in t/matrix.t, what they must not in
# t/h3-frames.t.
use v5.36;
use lib 't/lib';
use IO::Socket::IP;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H3;

my $certs = certs();
my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
my @names = map { "resolve.$_.good.test=127.0.0.1" } qw(a b c);
my @set = (@names, "upstream.upstream_ca=$certs->{ca}{cert}",
    'proxy.via=tester');
my $w = Weir->start(set => \@set, args => ['-v'],
    env => { SSLKEYLOGFILE => scratch('keys') });

sub client($weir = $w, %o)
{
    return Weir::H3->client(port => $weir->port, sni => 'localhost',
        wire => { ca => $weir->ca, ($o{wire} // {})->%* },
        map { ($_ => $o{$_}) } grep { $_ ne 'wire' } keys %o);
}

# A request of $c to an HTTP/1 listener of its own, and its answer.
sub served($c, @fields)
{
    my $l = listener();
    my $id = $c->request([ Weir::H2::get($l->addr), @fields ]);
    my $o = $l->accept;
    my $seen = $o->get_request;
    $o->put($ok);
    my $s = $c->answer($id);
    return $s->{body} eq 'ok' ? $seen : undef;
}

sub subject_names($der)
{
    my $r = run([ qw(openssl x509 -inform DER -noout -ext subjectAltName) ],
        in => spew(scratch('der'), $der));
    return join ' ', $r->{out} =~ /(?:DNS|IP Address):([^\s,]+)/g;
}

my $tls = origin(sub ($c) {
    while (my $r = $c->get_request) {
        $c->note("$r->{method} $r->{target} " . field($r, 'host'));
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
    }
}, tls => $certs->{good});

# ---- whose name
for my $sni ('localhost', '-', 'WEIR.INVALID') {
    my $c = client($w, sni => $sni, wire => { ca => '' });
    ok $c->{up}, "the name $sni: a handshake";
    ok served($c), 'a forward proxy';
    is $c->{alpn}, 'h3', 'h3';
    my $id = $c->request([ Weir::H2::get('a.good.test:' . $tls->port, '/x',
        'GET', 'https') ]);
    is $c->answer($id)->{body}, 'secret', 'an https origin, asked for in full';
}
like subject_names(client()->{cert}), qr/localhost/, 'a certificate for itself';
{
    my $at = 'b.good.test:' . $tls->port;
    my $c = client($w, sni => 'b.good.test');
    ok $c->{up}, 'somebody else\'s name: a handshake, verified' or diag $c->{reason};
    is subject_names($c->{cert}), 'b.good.test', 'with a leaf for it';
    my $id = $c->request([ Weir::H2::get($at, '/y', 'GET', 'https') ]);
    is $c->answer($id)->{body}, 'secret', 'carried to the real one';
    like $tls->notes, qr{^GET /y \Q$at\E$}m, 'as it was asked for';
    like $w->wait_log(qr{target=https://b\.good\.test:\d+/y}),
        qr/version=http\/3 .*stream=0|stream=0 .*version=http\/3/,
        'the log has version and stream';
}

# ---- where it comes in
sub hex_port($weir)
{
    my $hex = sprintf ':%04X ', $weir->port;
    return qr/$hex/;
}
{
    my $plain = Weir->start(set => [ 'proxy.http3=no' ]);
    my $udp = slurp('/proc/net/udp');
    unlike $udp, hex_port($plain), 'http3 = no: no UDP';
    like $udp, hex_port($w), 'else on the same port';
    $plain->stop;
}
for my $case ([ '0.0.0.0:0', '127.0.0.2', '127.0.0.1' ],
    [ '[::]:0', '::1' ], [ '[::1]:0', '::1' ]) {
    my ($listen, @hosts) = @$case;
    my $wild = Weir->start(set => \@set, listen => $listen);
    for my $host (@hosts) {
        my $c = client($wild, host => $host);
        ok $c->{up}, "on $listen, asked at $host: from there comes the answer"
            or next;
        ok served($c), 'and a request is served';
        $c->close;
    }
    $wild->stop;
}

# ---- who may
{
    my $closed = Weir->start(set => [ @set, 'proxy.users=ann:pw' ]);
    my $c = client($closed);
    my $l = listener();
    my $id = $c->request([ Weir::H2::get($l->addr) ]);
    my $s = $c->answer($id);
    is $s->{status}, 407, 'a user is wanted';
    like join('|', map { "@$_" } $s->{fields}->@*), qr/proxy-authenticate Basic/,
        'and how';
    ok !$l->waiting, 'nobody is asked';
    my $seen = served($c, 'proxy-authorization', 'Basic YW5uOnB3');
    ok $seen, 'with one it goes';
    is field($seen, 'proxy-authorization'), undef, 'whose word stays here';
    $c = client($closed, sni => 'b.good.test');
    $id = $c->request([ Weir::H2::get('b.good.test:' . $tls->port, '/in',
        'GET', 'https') ]);
    isnt $c->answer($id)->{status} // 0, 200, 'another\'s name is no way around';
    unlike $tls->notes, qr{ /in }, 'nobody is asked';
    $closed->stop;
    $closed = Weir->start(set => [ @set, 'access.deny=127.0.0.1' ]);
    $c = client($closed);
    ok $c->{gone} || $c->answer($c->request([ Weir::H2::get($l->addr) ]))
        ->{status} == 403 || $c->{gone}, 'a client that is denied';
    ok !$l->waiting, 'reaches nobody';
    $closed->stop;
}

# ---- how much
{
    my $few = Weir->start(set => [ @set, 'http3.connections=2',
        'http2.streams=3' ]);
    my ($one, $two) = map { client($few) } 1 .. 2;
    ok $one->{up} && $two->{up}, 'as many connections as may be';
    my $three = client($few, wire => { idle_ms => 2000 });
    ok !$three->{up}, 'and no more';
    ok served($two), 'those that are there are served';
    $one->close;
    my $four = wait_for('room', sub {
        my $c = client($few, wire => { idle_ms => 2000 });
        return $c->{up} && $c;
    });
    ok $four, 'where one goes another comes';
    my $l = listener();
    $four->settled;
    my @id = map { $four->request([ Weir::H2::get($l->addr) ]) } 1 .. 3;
    is $four->open_stream, -1, 'no more streams than allowed';
    for (@id) {
        my $o = $l->accept;
        $o->get_request;
        $o->put($ok);
    }
    is $four->answer($_)->{body}, 'ok', 'each is answered' for @id;
    ok $four->until(sub { $four->open_stream >= 0 }), 'then there is room';
    $few->stop;
}

# ---- how it ends
{ # TERM: what runs ends in order
    my $dying = Weir->start(set => [ @set, 'proxy.grace_s=10' ]);
    my $c = client($dying);
    my $idle = client($dying);
    served($_) for $c, $idle;
    my $l = listener();
    my $id = $c->request([ Weir::H2::get($l->addr) ]);
    my $o = $l->accept;
    $o->get_request;
    $dying->signal('TERM');
    ok defined $c->until(sub { $c->{goaway} }), 'TERM: GOAWAY';
    is $idle->ending, 'application NO_ERROR', 'an idle connection ends';
    $o->put($ok);
    is $c->answer($id)->{body}, 'ok', 'what runs is answered';
    is $c->ending, 'application NO_ERROR', 'then that connection ends, too';
    is reap($dying), 0, 'and weir';
}
{ # idle
    my $short = Weir->start(set => [ @set, 'http3.idle_s=1', 'proxy.idle_s=1' ],
        args => ['-v']);
    my $c = client($short);
    ok served($c), 'a connection that is used';
    like $c->ending, qr/^(?:idle|application NO_ERROR)/, 'then is idle, and ends';
    my $tunnel = client($short);
    my $l = listener();
    my $id = $tunnel->request([ ':method', 'CONNECT', ':authority', $l->addr ],
        end => 0);
    my $o = $l->accept;
    my $s = $tunnel->stream($id);
    $tunnel->until(sub { $s->{status} });
    is $s->{status}, 200, 'a tunnel';
    my $other = client($short);
    $other->ending for 1 .. 2;
    $other = client($short);
    $other->ending;
    $tunnel->data($id, 'still there');
    is $o->get(11), 'still there', 'keeps its connection for longer than that';
    $o->put('and back');
    $tunnel->until(sub { length $s->{body} >= 8 });
    is $s->{body}, 'and back', 'both ways';
    $short->stop;
}
{ # without a word
    my $c = client();
    my $l = listener();
    my $id = $c->request([ Weir::H2::get($l->addr) ]);
    my $o = $l->accept;
    $o->get_request;
    $c->close('NO_ERROR');
    is $o->get_eof, '', 'a client that leaves: its origin is let go';
}
{ # keys
    my $keys = wait_for('keys', sub {
        my ($name) = glob(scratch('x') =~ s{/[^/]*$}{/*-keys}r);
        return $name && slurp($name);
    });
    like $keys, qr/^CLIENT_TRAFFIC_SECRET_0 /m, 'SSLKEYLOGFILE has the keys';
}
$w->stop;
done_testing;
