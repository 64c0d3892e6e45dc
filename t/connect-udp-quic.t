#!/usr/bin/perl
# HTTP/3 and connect-udp: tunnels by its datagrams, what of them is lost, and
# QUIC inside of tunnels over every version: intercepted, or left alone.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H2;
use Weir::H3;
use Weir::Udp;
use Ways;

my @set = ('upstream.upstream_ca=' . certs()->{ca}{cert}, 'proxy.grace_s=1',
    map { "resolve.$_.test=127.0.0.1" } 'good', 'sub.good', 'other');
my $w = Weir->start(set => \@set);

sub h3($w, %o)
{
    my $h3 = Weir::H3->client(port => $w->port, sni => 'localhost', %o);
    $h3->settled;
    return $h3;
}

sub tunnel($h3, $host, $port, %o)
{
    return Weir::Udp->by_h3($h3, udp_path($host, $port), %o);
}

sub tunnel_line($w, $port)
{
    return $w->wait_log(qr/ tunnel .*protocol=connect-udp target=\S+:$port /);
}

# ---- datagrams of HTTP/3 (RFC 9297 section 2)
{
    my $far = udp_socket();
    my $h3  = h3($w);
    is $h3->{settings}{0x33}, 1, 'SETTINGS offer datagrams';
    is $h3->{settings}{8}, 1, 'and extended CONNECT';
    my $t = tunnel($h3, '127.0.0.1', $far->sockport);
    is $t->{status}, 200, 'a tunnel';
    is $t->field('Capsule-Protocol'), '?1', 'on which capsules may come';
    $t->say('ping');
    my ($got, $from) = udp_receive($far);
    is $got, 'ping', 'a datagram goes up';
    $far->send('pong', 0, $from);
    is $t->hear, 'pong', 'and one comes down as a datagram';
    $t->send('capsule');
    is udp_receive($far), 'capsule', 'a capsule goes up as well';
    $far->send('again', 0, $from);
    is $t->hear, 'again', 'the answer is a datagram';
    $t->say('unknown', 2);
    $t->say('');
    is udp_receive($far), '', 'an unknown context is dropped, an empty one not';
    $far->send('', 0, $from);
    is $t->hear, '', 'down as well';
    # RFC 9298 section 6.1: what does not fit shall not come by other means.
    $far->send('x' x 5000, 0, $from);
    $far->send('y' x 1000, 0, $from);
    is $t->hear, 'y' x 1000, 'what does not fit is dropped, not queued';
    is $h3->stream($t->{id})->{body}, '', 'nor does it come as a capsule';
    for my $n (1 .. 50) {
        $t->say("n$n");
        is scalar udp_receive($far), "n$n", "up $n" if $n % 10 == 0;
        udp_receive($far) if $n % 10;
    }
    my $other = udp_socket();
    my $u = tunnel($h3, '127.0.0.1', $other->sockport);
    $u->say('for the other');
    my ($got2, $from2) = udp_receive($other);
    is $got2, 'for the other', 'a second tunnel on the connection';
    $other->send('two', 0, $from2);
    is $u->hear, 'two', 'has its own datagrams';
    $u->finish;
    is $u->ending, 'end', 'and its own end';
    $t->say('still');
    is udp_receive($far), 'still', 'the first one lives';
    $t->finish;
    is $t->ending, 'end', 'until it ends, too';
    like tunnel_line($w, $far->sockport),
        qr/ stream=0 .* up_datagrams=54 down_datagrams=4 up_dropped=0 down_dropped=1 /,
        'all of it is counted';
}
{
    my $far = udp_socket();
    my $t = tunnel(h3($w), '127.0.0.1', $far->sockport);
    $t->{h3}->datagram($t->{id}, '');
    is $t->ending, 'cut', 'a datagram without a context';
    like tunnel_line($w, $far->sockport), qr/why=proto by=client/,
        'and the log says why';
    $far = udp_socket();
    my $port = $far->sockport;
    $t = tunnel(h3($w), '127.0.0.1', $port);
    $t->say('there?');
    udp_receive($far);
    close $far;
    $t->say('still?');
    is $t->ending, 'cut', 'ICMP ends it';
    like tunnel_line($w, $port), qr/why=refused by=origin/,
        'and the log says why';
}
{
    # A client may hope (RFC 9298 section 4).
    my $far = udp_socket();
    my $h3 = h3($w);
    my $id = $h3->request([ ':method', 'CONNECT', ':protocol', 'connect-udp',
        ':scheme', 'https', ':authority', 'localhost', ':path',
        udp_path('127.0.0.1', $far->sockport) ], end => 0);
    $h3->drained($id); # the stream is there; its answer may not be
    $h3->datagram($id, "\0early");
    is udp_receive($far), 'early', 'a datagram before the answer';
}

{
    # Datagrams that belong to nothing (RFC 9297 sections 2 and 2.1).
    my $h3 = h3($w);
    my $l  = listener(); # it does not answer
    my $id = $h3->request([ Weir::H2::get($l->addr) ]);
    $h3->drained($id);
    $h3->datagram($id, "\0what for?");
    my $s = $h3->stream($id);
    $h3->until(sub { $s->{reset} || $s->{stopped} || $s->{end} });
    is $s->{reset} // $s->{stopped}, 'DATAGRAM_ERROR',
        'a datagram for a request that has none';
    is $h3->answer($h3->request([ Weir::H2::get('weir.invalid') ]))->{status},
        200, 'the connection goes on';
    $h3->datagram(4000, 'for nobody');
    is $h3->answer($h3->request([ Weir::H2::get('weir.invalid') ]))->{status},
        200, 'one for a stream that is not there is dropped';
    my %broken = ('without a stream' => "\x40",
        'for a stream beyond all' => "\xff" x 8 . 'x');
    for my $what (sort keys %broken) {
        my $c = h3($w);
        my $bytes = $broken{$what};
        Weir::H3::command("datagram $c->{id} " . length $bytes, $bytes);
        is $c->ending, 'application DATAGRAM_ERROR', "a datagram $what";
    }
}
{
    my $far = udp_socket();
    my $t = tunnel(h3($w), '127.0.0.1', $far->sockport,
        authority => '127.0.0.1');
    is $t->{status}, 200, 'called by our address, without a port';
}

# ---- QUIC inside
# An origin twice on one port: by TLS, and by QUIC.
my $tcp = origin(sub ($c) {
    while (my $r = $c->get_request) {
        my $text = $r->{target} =~ m{/big} ? 'z' x 500_000 : 'over tcp';
        $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($text)
                . "\r\n\r\n$text");
    }
}, tls => certs()->{good});
my $port = $tcp->port;
my $udp  = Weir::H3->listener(port => $port);

my %by = (
    'HTTP/1.1' => sub ($w, $path) {
        Weir::Udp->by_h1($w->client, $path, host => $w->addr) },
    'HTTP/2' => sub ($w, $path) {
        Weir::Udp->by_h2(Weir::H2->client($w->client), $path,
            authority => $w->addr, scheme => 'http') },
    'HTTP/3 by capsules' => sub ($w, $path) {
        Weir::Udp->by_h3(h3($w, settings => {}), $path) },
    'HTTP/3 by datagrams' => sub ($w, $path) {
        Weir::Udp->by_h3(h3($w), $path) },
);

sub inside($w, $how, $host)
{
    return forwarder(sub { $by{$how}->($w, udp_path($host, $port)) },
        say => scalar $how =~ /by datagrams/);
}

# Is it weir's certificate that the client got?
sub is_ours($w, $c)
{
    $c->until(sub { $c->{cert} });
    my $file = spew(scratch('leaf'), $c->{cert} // '');
    my $pem  = scratch('leaf.pem');
    run([ 'openssl', 'x509', '-inform', 'DER', '-in', $file, '-out', $pem ]);
    return run([ 'openssl', 'verify', '-CAfile', $w->ca, $pem ])->{exit} == 0;
}

sub ask($c, $authority, $path = '/inside')
{
    my $id = $c->request([ ':method', 'GET', ':scheme', 'https',
        ':authority', $authority, ':path', $path ]);
    return $c->answer($id);
}

# It is the origin's own connection.
sub is_opaque($w, $f, $sni, $what)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $c = Weir::H3->client(port => $f->port, sni => $sni);
    ok $c->{up}, "$what: a connection" or return diag $c->{reason};
    ok !is_ours($w, $c), "$what: the origin's certificate";
    my $s = $udp->accept;
    my $id = $c->request([ Weir::H2::get("$sni:$port", '/far', 'GET', 'https') ]);
    my $r = $s->next_request;
    is $r->{head}{':path'}, '/far', "$what: the origin is asked";
    $s->reply($r->{id}, 200, [], 'by quic');
    is $c->answer($id)->{body}, 'by quic', "$what: and answers";
    $c->close;
    return 1;
}

for my $how (sort keys %by) {
    my $f = inside($w, $how, 'good.test');
    my $c = Weir::H3->client(port => $f->port, sni => 'good.test');
    ok $c->{up}, "$how: QUIC inside" or diag $c->{reason};
    ok is_ours($w, $c), "$how: shows our certificate";
    my $s = ask($c, "good.test:$port");
    is $s->{status}, 200, "$how: is answered";
    is $s->{body}, 'over tcp', "$how: by the origin";
    is ask($c, "good.test:$port")->{body}, 'over tcp', "$how: once more";
    is length ask($c, "good.test:$port", '/big')->{body}, 500_000,
        "$how: and much";
    $c->close;
    $f->close;
    like tunnel_line($w, $port), qr/ inside=intercepted /,
        "$how: the tunnel's line says so";
}
is scalar(grep { m{ exchange .*version=http/3 .*target=https://good\.test:$port/inside status=200 } }
    split /\n/, $w->log), 2 * keys %by, 'each request has its line';

# By address: the name in the handshake counts, and without one the address.
{
    my $f = inside($w, 'HTTP/3 by datagrams', '127.0.0.1');
    my $c = Weir::H3->client(port => $f->port, sni => 'sub.good.test');
    ok is_ours($w, $c), 'to an address, with a name';
    is ask($c, "sub.good.test:$port")->{body}, 'over tcp', 'which is asked';
    $c->close;
    $f = inside($w, 'HTTP/2', 'good.test');
    $c = Weir::H3->client(port => $f->port);
    ok is_ours($w, $c), 'without a name';
    is ask($c, "good.test:$port")->{body}, 'over tcp', 'the target is asked';
    $c->close;
}
# Programs that others have written.
SKIP: {
    skip 'no gtlsclient', 2 if !have('gtlsclient');
    my $f = inside($w, 'HTTP/3 by datagrams', 'good.test');
    my $r = gtlsclient($f->port, 'good.test', ["https://good.test:$port/tool"]);
    is slurp("$r->{dir}/tool"), 'over tcp', 'gtlsclient through a tunnel'
        or diag $r->{err};
    like $w->wait_log(qr{exchange .*/tool}), qr{version=http/3 .*status=200},
        'and its line';
}
# What only looks like QUIC.
{
    my $far = udp_socket();
    my $t = $by{'HTTP/2'}->($w, udp_path('127.0.0.1', $far->sockport));
    my @odd = ("\xc0\0\0\0\1\x08" . 'x' x 1300, "\xc0\0\0\0\2" . "\0" x 1200,
        "\xc0\0\0\0\1", "\x40" . 'y' x 1200, 'z');
    for my $one (@odd) {
        $t->send($one);
        ok udp_receive($far) eq $one, 'no QUIC that we know passes';
    }
}
$w->stop;

# ---- exceptions
$w = Weir->start(set => [ @set, 'intercept.except=*.good.test, other.test' ]);
for my $how (sort keys %by) {
    is_opaque($w, inside($w, $how, 'good.test'), 'sub.good.test',
        "$how: an exception by name");
    is_opaque($w, inside($w, $how, 'other.test'), 'good.test',
        "$how: an exception by target");
}
unlike $w->log, qr/inside=intercepted/, 'none of them was looked into';
$w->stop;
$w = Weir->start(set => [ @set, 'intercept.enable=no' ]);
is_opaque($w, inside($w, 'HTTP/3 by datagrams', 'good.test'), 'good.test',
    'without interception');
# A tunnel that is open inside does not keep weir from ending.
$w->stop;
$w = Weir->start(set => \@set);
my $f = inside($w, 'HTTP/3 by datagrams', 'good.test');
my $c = Weir::H3->client(port => $f->port, sni => 'good.test');
ok $c->{up}, 'one is open';
$w->stop;
done_testing;
