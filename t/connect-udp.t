#!/usr/bin/perl
# UDP through HTTP (RFC 9298): by Upgrade and by extended CONNECT, with and
# without TLS; what is refused, what ends a tunnel, what is lost and counted.
use v5.36;
use lib 't/lib';
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H2;
use Weir::H3;
use Weir::Udp;

my $dead = udp_socket()->sockport; # nobody has it any more
my @set  = ('access.target_deny=127.0.0.9, *.denied.test',
    'resolve.named.test=127.0.0.1', 'resolve.hidden.test=127.0.0.9',
    'upstream.dns_s=2', 'proxy.http3=yes', 'proxy.grace_s=1');
my $w = Weir->start(set => \@set, args => ['-v']);

# ---- the carriers: each gives a fresh tunnel to host and port
sub wire($w, $tls, @alpn)
{
    my $wire = $w->client;
    if ($tls) {
        $wire->tls_client(sni => 'localhost', ca => $w->ca,
            alpn => [ @alpn ? @alpn : 'http/1.1' ])
            or die "TLS: $wire->{error}\n";
    }
    return $wire;
}

sub h3($w, %o)
{
    my $h3 = Weir::H3->client(port => $w->port, sni => 'localhost', %o);
    $h3->settled;
    return $h3;
}

my %by = (
    'HTTP/1.1'          => sub ($w, $path, %o) {
        Weir::Udp->by_h1(wire($w, 0), $path, host => $w->addr, %o) },
    'HTTP/1.1 over TLS' => sub ($w, $path, %o) {
        Weir::Udp->by_h1(wire($w, 1), $path, %o) },
    'HTTP/2'            => sub ($w, $path, %o) {
        Weir::Udp->by_h2(Weir::H2->client(wire($w, 0)), $path,
            authority => $w->addr, scheme => 'http', %o) },
    'HTTP/2 over TLS'   => sub ($w, $path, %o) {
        Weir::Udp->by_h2(Weir::H2->client(wire($w, 1, 'h2')), $path, %o) },
    'HTTP/3'            => sub ($w, $path, %o) {
        Weir::Udp->by_h3(h3($w, settings => {}), $path, %o) },
);
my @all = sort keys %by;

# The line of the tunnel to a port, once it is over.
sub tunnel_line($w, $port, $host = '127\.0\.0\.1')
{
    return $w->wait_log(qr/ tunnel .*protocol=connect-udp target=$host:$port /);
}

# ---- what every carrier has to do
for my $how (@all) {
    my $far = udp_socket();
    my $port = $far->sockport;
    my $h1 = $how =~ /1\.1/;
    my $t = $by{$how}->($w, udp_path('127.0.0.1', $port),
        early => datagram('early'));
    is $t->{status}, $h1 ? 101 : 200, "$how: granted" or diag $t->{head};
    is $t->field('Capsule-Protocol'), '?1', "$how: capsules follow";
    is $t->field('Content-Length'), undef, "$how: and no content";
    is $t->field('Upgrade'), $h1 ? 'connect-udp' : undef,
        "$how: the protocol is named where it has to be";
    my ($got, $from) = udp_receive($far);
    is $got, 'early', "$how: what came before the answer is not lost";
    $far->send('pong', 0, $from);
    is $t->receive, 'pong', "$how: comes down";
    $t->put(datagram('x')
        . capsule(0x29, 'y' x 70)
        . datagram('other', 2)
        . datagram('other', 1 << 20)
        . capsule(0x1234567, '')
        . datagram('z'));
    is join('', map { scalar udp_receive($far) } 1, 2), 'xz',
        "$how: other capsules and contexts are skipped";
    $t->put("$_") for split //, datagram('bytes');
    is udp_receive($far), 'bytes', "$how: byte by byte";
    $t->send('');
    my $set = '';
    vec($set, fileno $far, 1) = 1;
    is select($set, undef, undef, LIMIT), 1, "$how: an empty one arrives";
    is udp_receive($far), '', "$how: and is empty";
    $far->send('', 0, $from);
    is $t->receive, '', "$how: and another one comes down";
    my $big = join '', map { chr(65 + $_ % 26) } 1 .. 65507;
    $t->send($big);
    ok udp_receive($far) eq $big, "$how: the largest that IPv4 knows";
    $far->send($big, 0, $from);
    ok $t->receive eq $big, "$how: down as well";
    $t->send('a' x 65520); # UDP_MAX is for IPv6's jumbograms, RFC 9298 s. 5
    $t->put(join '', map { datagram("n$_") } 1 .. 100);
    is join(' ', map { scalar udp_receive($far) } 1 .. 100),
        join(' ', map { "n$_" } 1 .. 100), "$how: a hundred at once";
    $far->send("m$_", 0, $from) for 1 .. 100;
    is join(' ', map { $t->receive } 1 .. 100),
        join(' ', map { "m$_" } 1 .. 100), "$how: and back";
    my $stranger = udp_socket();
    $stranger->send('stranger', 0, $from);
    $far->send('last', 0, $from);
    is $t->receive, 'last', "$how: a stranger's packet is not for us";
    $t->finish;
    is $t->ending, 'end', "$how: the tunnel ends as the client wants";
    my $line = tunnel_line($w, $port);
    my $up = 5 + 1 + 1 + 5 + 65507 + 292;
    my $down = 4 + 65507 + 292 + 4;
    like $line, qr/ up=$up down=$down up_datagrams=106 down_datagrams=104 up_dropped=1 down_dropped=0 /,
        "$how: and is counted";
    like $line, qr/ ended_by=client why=none/, "$how: nobody is to blame";
    like $line, $h1 ? qr/^(?!.*stream=)/ : $how =~ /3/ ? qr/ stream=0 /
        : qr/ stream=1 /, "$how: its stream";
}
like $w->log, qr/ state .*masque/, 'the state is in the log';

# ---- who it is for
for my $how (@all) {
    my $ask = sub ($path, %o) { $by{$how}->($w, $path, %o) };
    my $far = udp_socket();
    my %wrong = (
        'no port'        => '/.well-known/masque/udp/127.0.0.1/',
        'port 0'         => udp_path('127.0.0.1', 0),
        'port 65536'     => udp_path('127.0.0.1', 65536),
        'a broken escape'=> udp_path('127.0.0.1%3', 443),
        'a bad host'     => udp_path('a%20b', 443),
        'a zone'         => udp_path('fe80%3A%3A1%25lo', 443),
    );
    for my $what (sort keys %wrong) {
        is $ask->($wrong{$what})->{status}, 400, "$how: $what is a 400";
    }
    for my $host ('127.0.0.9', 'x.denied.test', 'hidden.test',
        '%3A%3Affff%3A127.0.0.9') {
        my $t = $ask->(udp_path($host, 443));
        is $t->{status}, 403, "$how: $host is denied";
        like $t->field('Proxy-Status'), qr/error=http_request_denied/,
            "$how: and Proxy-Status says so";
    }
    my $t = $ask->(udp_path('name.invalid', 443));
    ok $t->{status} == 502 || $t->{status} == 504,
        "$how: a name that is none";
    like $t->field('Proxy-Status'), qr/error=dns_(error|timeout)/,
        "$how: and Proxy-Status says so";
    $t = $ask->(udp_path('weir.invalid', 443));
    is $t->{status}, 403, "$how: not to ourselves by name";
    $t = $ask->(udp_path('localhost', $w->port));
    is $t->{status}, 403, "$how: nor to our port";
    like $t->field('Proxy-Status'), qr/error=proxy_loop_detected/,
        "$how: it would be a loop";
    $t = $ask->(udp_path('named.test', $far->sockport));
    ok $t->open, "$how: a name of [resolve]";
    $t->send('by name');
    is udp_receive($far), 'by name', "$how: is asked for";
    is $ask->('/.well-known/masque/ip/1/2/',
        authority => 'localhost:' . $w->port)->{status}, 404,
        "$how: another path is none of ours";
}
{
    # "localhost" has two addresses, whoever is there has one.
    for my $host ('127.0.0.1', '::1') {
        my $far = eval { udp_socket(host => $host) } or next;
        my $t = $by{'HTTP/2'}->($w, udp_path('localhost', $far->sockport));
        $t->send('here?');
        is udp_receive($far), 'here?', "somebody at $host, by name";
    }
}
SKIP: {
    my $six = eval { udp_socket(host => '::1') };
    skip 'no IPv6 here', 1 if !$six;
    my $t = $by{'HTTP/2'}->($w, udp_path('%3A%3A1', $six->sockport));
    $t->send('six');
    is udp_receive($six), 'six', 'an IPv6 address, escaped';
}
for my $bad ([ method => 'POST' ], [ fields => ['Content-Length: 3'],
        early => 'abc' ], [ fields => ['Transfer-Encoding: chunked'],
        early => "0\r\n\r\n" ]) {
    is $by{'HTTP/1.1'}->($w, udp_path('127.0.0.1', 9), @$bad)->{status}, 400,
        "by GET alone, and without content: not @$bad[0, 1]";
}
{
    my $far = udp_socket();
    my $path = udp_path('127.0.0.1', $far->sockport);
    my $t = $by{'HTTP/1.1'}->($w, $path, target => "http://" . $w->addr . $path);
    ok $t->open, 'in absolute-form, as RFC 9298 writes it';
    # Another proxy's path, through this one: an upgrade as any other.
    my $l = listener();
    my $c = $w->client;
    $c->put("GET http://" . $l->addr . "$path HTTP/1.1\r\nHost: x\r\n"
            . "Connection: Upgrade\r\nUpgrade: connect-udp\r\n\r\n");
    my $s = $l->accept;
    like $s->get_head, qr{^GET /\.well-known.*^Upgrade: connect-udp\r}ms,
        'another proxy gets what is for it';
    $s->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            . "Upgrade: connect-udp\r\n\r\n" . datagram('far away'));
    like $c->get_head, qr{^HTTP/1\.1 101 }, 'its answer comes back';
    is $c->get(length datagram('far away')), datagram('far away'),
        'and so does what follows';
}

# ---- how a tunnel ends
for my $how (@all) {
    my %broken = (
        'a datagram without a context' => capsule(0, ''),
        'half a context'               => capsule(0, "\x40"),
        'more than UDP can carry'      => capsule(0, "\0" x 65529),
        'the beginning of far more'    => varint(0) . varint(1 << 40) . "\0" x 9,
    );
    for my $what (sort keys %broken) {
        my $far = udp_socket();
        my $t = $by{$how}->($w, udp_path('127.0.0.1', $far->sockport));
        $t->put($broken{$what});
        is $t->ending, 'cut', "$how: $what ends it";
        like tunnel_line($w, $far->sockport), qr/why=proto .*by=client/,
            "$how: and the log says why";
    }
    my $far = udp_socket();
    my $t = $by{$how}->($w, udp_path('127.0.0.1', $far->sockport));
    $t->put("\0\5abc");
    $t->finish;
    is $t->ending, 'cut', "$how: the end in a capsule";
    like tunnel_line($w, $far->sockport), qr/why=cut by=client/,
        "$how: and the log says why";
    $far = udp_socket();
    my $port = $far->sockport;
    $t = $by{$how}->($w, udp_path('127.0.0.1', $port));
    $t->send('hello');
    is udp_receive($far), 'hello', "$how: somebody is there";
    close $far;
    $t->send('are you?');
    is $t->ending, 'cut', "$how: ICMP ends it";
    like tunnel_line($w, $port), qr/why=refused by=origin/,
        "$how: and the log says why";
    # A client that is gone.
    $far = udp_socket();
    $t = $by{$how}->($w, udp_path('127.0.0.1', $far->sockport));
    $t->vanish;
    like tunnel_line($w, $far->sockport), qr/ended_by=client/,
        "$how: a client that is gone";
}
$w->stop;

# ---- clocks and numbers
$w = Weir->start(set => [ @set, 'tunnel.udp_idle_s=1', 'tunnel.udp_tunnels=2',
    'proxy.idle_s=1' ]);
for my $how (@all) {
    my $far = udp_socket();
    my $from = time;
    my $t = $by{$how}->($w, udp_path('127.0.0.1', $far->sockport));
    $t->send('first');
    my (undef, $addr) = udp_receive($far);
    for my $n (1 .. 4) { # three times as long, and never quiet
        $far->send("n$n", 0, $addr);
        is $t->receive, "n$n", "$how: packets keep it open";
        udp_receive($far, 0.4);
    }
    is $t->ending, 'end', "$how: a quiet tunnel ends";
    cmp_ok time - $from, '>=', 2, "$how: not before its time";
    like tunnel_line($w, $far->sockport), qr/why=idle/, "$how: told in the log";
}
{
    my @far = map { udp_socket() } 1 .. 3;
    my $a = $by{'HTTP/1.1'}->($w, udp_path('127.0.0.1', $far[0]->sockport));
    my $b = $by{'HTTP/2'}->($w, udp_path('127.0.0.1', $far[1]->sockport));
    my $c = $by{'HTTP/2'}->($w, udp_path('127.0.0.1', $far[2]->sockport));
    ok $a->open && $b->open, 'as many tunnels as there may be';
    is $c->{status}, 503, 'one more is too many';
    $b->finish;
    tunnel_line($w, $far[1]->sockport);
    $c = $by{'HTTP/2'}->($w, udp_path('127.0.0.1', $far[2]->sockport));
    ok $c->open, 'its place is free again';
}
$w->stop;

# ---- users, parents
$w = Weir->start(set => [ @set, 'proxy.users=ann:secret',
    'upstream.parent=http://127.0.0.1:1', 'upstream.no_proxy=127.0.0.0/8' ]);
for my $how (@all) {
    my $far = udp_socket();
    my $path = udp_path('127.0.0.1', $far->sockport);
    my $h1 = $how =~ /1\.1/;
    my $login = [ $h1 ? 'Proxy-Authorization: Basic YW5uOnNlY3JldA=='
        : ('proxy-authorization', 'Basic YW5uOnNlY3JldA==') ];
    my $wrong = [ $h1 ? 'Proxy-Authorization: Basic YW5uOndyb25n'
        : ('proxy-authorization', 'Basic YW5uOndyb25n') ];
    my $t = $by{$how}->($w, $path);
    is $t->{status}, 407, "$how: who are you?";
    like $t->field('Proxy-Authenticate'), qr/^Basic /, "$how: say it so";
    is $by{$how}->($w, $path, fields => $wrong)->{status}, 407,
        "$how: no, you are not";
    $t = $by{$how}->($w, $path, fields => $login);
    ok $t->open, "$how: one of the users";
    $t->send('in');
    is udp_receive($far), 'in', "$how: has his tunnel";
    $t = $by{$how}->($w, udp_path('far.test', 443), fields => $login);
    is $t->{status}, 502, "$how: parents carry no UDP";
    like $t->{body}, qr/parent proxy carries no UDP/, "$how: and it says so";
}
# A tunnel that is open does not keep weir from ending.
my $open = $by{'HTTP/2'}->($w, udp_path('127.0.0.1', udp_socket()->sockport),
    fields => [ 'proxy-authorization', 'Basic YW5uOnNlY3JldA==' ]);
ok $open->open, 'one is open';
$w->stop;

# ---- loss: what came is what was sent, less what was counted
$w = Weir->start(set => \@set);
for my $how (@all) {
    my $far = udp_socket();
    my $t = $by{$how}->($w, udp_path('127.0.0.1', $far->sockport));
    $t->send('go');
    my (undef, $from) = udp_receive($far);
    my ($sent, $came) = (0, 0);
    my $content = 'x' x 1200;
    for (1 .. 20000) { # the client does not read meanwhile
        $sent++ if defined $far->send($content, 0, $from);
    }
    my $line = '';
    $far->send('over', 0, $from);
    until ($line) {
        # What is lost is only told with a packet that is not.
        my $got = $t->receive // last;
        $got eq $content ? $came++ : $got eq 'over' ? ($line = 1) : fail $got;
        $far->send('over', 0, $from) if $came % 100 == 0;
    }
    $t->finish;
    $t->ending;
    $line = tunnel_line($w, $far->sockport);
    my ($n, $lost) = $line =~ /down_datagrams=(\d+) .*down_dropped=(\d+)/;
    cmp_ok $lost, '>', 0, "$how: a client that does not read loses packets";
    cmp_ok $n + $lost, '>=', $sent, "$how: and those are counted";
    cmp_ok $n, '>=', $came, "$how: as are those that came";
}
$w->stop;
done_testing;
