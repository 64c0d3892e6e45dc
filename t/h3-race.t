#!/usr/bin/perl
# HTTP/3 with origins: who is tried in it, what is learned from Alt-Svc, and
# that TCP is there where QUIC is not.
use v5.36;
use lib 't/lib';
use IO::Socket::IP;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H2;
use Weir::H3;

my $certs = certs();

sub weir_with(@set)
{
    return Weir->start(args => ['-v'], set => [
        "upstream.upstream_ca=$certs->{ca}{cert}", 'upstream.response_s=8',
        (map { "resolve.$_.good.test=127.0.0.1" } qw(a b c d alt)), @set ]);
}

# Something that answers each request with $say over TCP, in TLS; its port.
sub tcp_origin($say = 'X-Over: tcp')
{
    return origin(sub ($c) {
        while (my $r = $c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\n$say\r\nContent-Length: 3\r\n\r\ntcp");
        }
    }, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });
}

# A UDP port that takes all and says nothing.
sub black_hole($port)
{
    return IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => $port,
        Proto => 'udp', Type => Socket::SOCK_DGRAM()) // die "bind: $@";
}

# Who has come to it: the destination IDs of the Initial packets.
sub visitors($hole)
{
    my %seen;
    $hole->blocking(0);
    while (1) {
        my $packet = "";
        last if !defined $hole->recv($packet, 2048) || !length $packet;
        my $first = ord $packet;
        next if ($first & 0xf0) != 0xc0 && ($first & 0xb0) != 0x80;
        $seen{ substr $packet, 6, ord substr $packet, 5, 1 } = 1;
    }
    return keys %seen;
}

sub ask($w, $url, @fields)
{
    my $c = $w->client;
    $c->put(request('GET', $url, \@fields));
    return $c->get_answer;
}

# The same, while $l answers by HTTP/3.  %o: fields, body.
sub ask_quic($w, $url, $l, %o)
{
    my $c = $w->client;
    $c->put(request('GET', $url));
    my $o = $o{on} // $l->accept;
    my $s = $o->next_request // die "no request\n";
    $o->reply($s->{id}, $o{status} // 200, $o{fields} // [], 'quic');
    return ($c->get_answer, $o, $s);
}

sub used($s)
{
    return join '|', map { $_->[1] } grep { $_->[0] eq 'alt-used' }
        $s->{fields}->@*;
}

{ # UDP is refused
    my $t = tcp_origin();
    my $w = weir_with('upstream.http3=*.good.test');
    my $url = 'https://a.good.test:' . $t->port . '/';
    is ask($w, $url)->{body}, 'tcp', 'nobody at the UDP port: TCP';
    like $w->wait_log(qr/http3/), qr/a\.good\.test port \d+: .*not tried for 5/,
        'which is logged';
    my $hole = black_hole($t->port);
    is ask($w, $url)->{body}, 'tcp', 'then over TCP';
    is scalar(visitors($hole)), 0, 'at once: QUIC is not tried';
    close $hole;
    my $l = Weir::H3->listener(port => $t->port);
    my $c;
    wait_for('another try', sub {
        $c = $w->client;
        $c->put(request('GET', $url));
        1 while !$l->waiting && $c->silent(0.02);
        return $l->waiting;
    });
    my $o = $l->accept;
    my $s = $o->next_request;
    $o->reply($s->{id}, 200, [], 'quic');
    is $c->get_answer->{body}, 'quic', 'after a while it is tried again';
    is((ask_quic($w, $url, $l, on => $o))[0]{body}, 'quic', 'and stays');
    $w->stop;
}
{ # UDP leads nowhere
    my $t    = tcp_origin();
    my $hole = black_hole($t->port);
    my $w    = weir_with('upstream.http3=*.good.test');
    my $url  = 'https://a.good.test:' . $t->port . '/';
    my $from = time;
    is ask($w, $url)->{body}, 'tcp', 'UDP that leads nowhere: TCP';
    cmp_ok time - $from, '>=', 0.2, 'after QUIC has had its time';
    like $w->wait_log(qr/http3/), qr/QUIC handshake.*not tried for 5/,
        'which is logged';
    is ask($w, $url)->{body}, 'tcp', 'again';
    is scalar(visitors($hole)), 1, 'QUIC was tried once';
    $w->stop;
}
{ # a slow handshake
    my $t   = tcp_origin();
    my $w   = weir_with('upstream.http3=*.good.test', 'upstream.connect_s=20');
    my $url = 'https://a.good.test:' . $t->port . '/';
    my $hole = black_hole($t->port);
    is ask($w, $url)->{body}, 'tcp', 'QUIC is late: TCP';
    close $hole;
    my $l = Weir::H3->listener(port => $t->port);
    my $o = $l->accept;
    ok $o->{up}, 'its handshake goes on';
    $o->settled;
    is((ask_quic($w, $url, $l, on => $o))[0]{body}, 'quic',
        'and what comes of it is used');
    $w->stop;
}
{ # TCP leads nowhere
    my $closed = closed_port();
    my $w = weir_with('upstream.http3=*.good.test');
    my $l = Weir::H3->listener(port => $closed);
    is((ask_quic($w, "https://a.good.test:$closed/", $l))[0]{body}, 'quic',
        'no TCP at all: QUIC');
    $l = undef;
    my $got = ask($w, 'https://b.good.test:' . closed_port() . '/');
    is $got->{status}, 502, 'neither: 502';
    like field($got, 'proxy-status'), qr/connection_refused/, 'as for TCP';
    $w->stop;
}
{ # neither, and UDP does not say so
    my $closed = closed_port();
    my $hole   = black_hole($closed);
    my $w = weir_with('upstream.http3=*.good.test');
    my $url = "https://a.good.test:$closed/";
    my $got = ask($w, $url);
    is $got->{status}, 502, 'nobody at all: 502';
    like field($got, 'proxy-status'), qr/connection_refused/, 'as for TCP';
    like $w->wait_log(qr/http3/), qr/QUIC handshake.*not tried for 5/,
        'and QUIC is left alone';
    is ask($w, $url)->{status}, 502, 'again';
    is scalar(visitors($hole)), 1, 'QUIC was tried once';
    $w->stop;
}
{ # learned
    my $l = Weir::H3->listener;
    my $t = tcp_origin(sprintf 'Alt-Svc: h3=":%d"; ma=60', $l->port);
    my $w = weir_with('upstream.http3=auto');
    my $url = 'https://a.good.test:' . $t->port . '/';
    is ask($w, $url)->{body}, 'tcp', 'auto: the first over TCP';
    my ($got, $o, $s) = ask_quic($w, $url, $l);
    is $got->{body}, 'quic', 'then where its Alt-Svc says';
    is used($s), 'a.good.test:' . $l->port, 'which hears so by Alt-Used';
    is $s->{head}{':authority'}, 'a.good.test:' . $t->port,
        ':authority stays';
    is $o->{sni}, 'a.good.test', 'and the name in the handshake';
    $got = (ask_quic($w, $url, $l, on => $o,
        fields => [ 'alt-svc', 'clear' ]))[0];
    is $got->{body}, 'quic', 'Alt-Svc: clear';
    is ask($w, $url)->{body}, 'tcp', 'ends it';
    ($got, $o) = ask_quic($w, $url, $l, status => 421, on => $o);
    is $got->{status}, 421, 'said again, and then 421';
    is ask($w, $url)->{body}, 'tcp', 'ends it, too';
    $w->stop;
}
for my $on ('connection', 'stream') { # learned by a frame of HTTP/2
    my $l = Weir::H3->listener;
    my $t = origin(sub ($c) {
        my $o = Weir::H2->server($c);
        while (my $s = $o->next_request) {
            my $self = 'https://' . $s->{head}{':authority'};
            my $value = sprintf 'h3=":%d"', $l->port;
            my $what = sub ($origin) {
                pack('n', length $origin) . $origin . $value;
            };
            $o->put(10, 0, 0, $what->('https://b.good.test'));
            $o->put(10, 0, 0, $what->($self)) if $on eq 'connection';
            $o->put(10, 0, $s->{id}, $what->('')) if $on eq 'stream';
            $o->reply($s->{id}, 200, [], 'tcp');
        }
    }, tls => { $certs->{good}->%*, alpn => ['h2'] });
    my $w   = weir_with('upstream.http3=auto');
    my $url = 'https://a.good.test:' . $t->port . '/';
    is ask($w, $url)->{body}, 'tcp', "ALTSVC frame of a $on:";
    is((ask_quic($w, $url, $l))[0]{body}, 'quic', 'is believed');
    is ask($w, $url =~ s/a\./b./r)->{body}, 'tcp', 'of this origin alone';
    $w->stop;
}
{ # learned: somewhere else
    my $l = Weir::H3->listener;
    my $t = tcp_origin(sprintf 'Alt-Svc: h3="alt.good.test:%d"', $l->port);
    my $w = weir_with('upstream.http3=auto');
    my $url = 'https://b.good.test:' . $t->port . '/';
    is ask($w, $url)->{body}, 'tcp', 'another host: first TCP';
    my ($got, $o, $s) = ask_quic($w, $url, $l);
    is $got->{body}, 'quic', 'then there';
    is used($s), 'alt.good.test:' . $l->port, 'Alt-Used';
    is $o->{sni}, 'b.good.test', 'under its own name';
    $w->stop;
    $w = weir_with('upstream.http3=auto', 'access.target_deny=alt.good.test');
    is ask($w, $url)->{body}, 'tcp', 'where clients may not go:' for 1 .. 2;
    ok !$l->waiting, 'nobody goes';
    $w->stop;
    $w = weir_with();
    is ask($w, $url)->{body}, 'tcp', 'by default:' for 1 .. 2;
    ok !$l->waiting, 'no HTTP/3 at all';
    $w->stop;
}
{ # learned from somebody else
    my $l = Weir::H3->listener(cert => $certs->{wrong});
    my $t = tcp_origin(sprintf 'Alt-Svc: h3=":%d"', $l->port);
    my $w = weir_with('upstream.http3=auto');
    my $url = 'https://a.good.test:' . $t->port . '/';
    is ask($w, $url)->{body}, 'tcp', 'one with a certificate not its own:'
        for 1 .. 2;
    like $w->wait_log(qr/http3/), qr/another host name.*not tried/,
        'is not believed';
    $w->stop;
}
{ # through a parent
    my $p = origin(sub ($c) {
        $c->get_request;
        $c->put("HTTP/1.1 200 OK\r\n\r\n");
        $c->tls_server($certs->{good}->%*, alpn => ['http/1.1']);
        while ($c->get_request) {
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nparent");
        }
    });
    my $l = Weir::H3->listener;
    my $w = weir_with('upstream.http3=*.good.test',
        'upstream.parent=http://' . $p->addr);
    is ask($w, 'https://a.good.test:' . $l->port . '/')->{body}, 'parent',
        'through a parent:';
    ok !$l->waiting, 'TCP alone';
    $w->stop;
}
{ # resumption, and sessions that nobody uses
    my $l = Weir::H3->listener;
    my $w = weir_with('upstream.http3=*.good.test', 'upstream.reuse_s=1');
    my $url = 'https://a.good.test:' . $l->port . '/';
    my ($got, $o) = ask_quic($w, $url, $l);
    is $o->{resumed}, 0, 'a first connection';
    is $o->ending, 'application NO_ERROR', 'ends when nobody has used it';
    $w->wait_log(qr/ session /); # then its ticket is kept
    ($got, $o) = ask_quic($w, $url, $l);
    is $got->{body}, 'quic', 'a second one';
    is $o->{resumed}, 1, 'resumes it';
    like $w->wait_log(qr/ session /), qr{version=http/3 streams=1 }, 'the log';
    $w->stop;
    is $o->ending, 'application NO_ERROR', 'weir says goodbye when it ends';
}
{ # insecure
    my $l = Weir::H3->listener(cert => $certs->{unknown});
    my $w = weir_with('upstream.http3=*.good.test',
        'upstream.insecure=a.good.test');
    my $url = 'https://a.good.test:' . $l->port . '/';
    is((ask_quic($w, $url, $l))[0]{body}, 'quic',
        'insecure: any certificate will do');
    $w->stop;
}
{ # intercepted
    my $t = tcp_origin();
    my $l = Weir::H3->listener(port => $t->port);
    my $w = weir_with('upstream.http3=*.good.test');
    my $c = $w->client;
    $c->connect('a.good.test:' . $l->port);
    my $pid = fork // die "fork: $!"; # two handshakes at once
    my $o;
    if ($pid == 0) {
        POSIX::_exit(1) if !$c->tls_client(sni => 'a.good.test', ca => $w->ca,
            alpn => ['http/1.1']);
        $c->put(request('GET', '/in', [ 'Host: a.good.test:' . $l->port ]));
        POSIX::_exit($c->get_answer->{body} eq 'quic' ? 0 : 2);
    }
    $o = $l->accept;
    my $s = $o->next_request;
    is $s->{head}{':path'}, '/in', 'intercepted: a request';
    $o->reply($s->{id}, 200, [], 'quic');
    waitpid $pid, 0;
    is $? >> 8, 0, 'and its answer';
    like $w->wait_log(qr{exchange .*/in }), qr{origin_version=http/3}, 'the log';
    $w->stop;
}
{ # WebSocket
    my $l = Weir::H3->listener;
    my $w = weir_with('upstream.http3=*.good.test');
    my @ws = ('Connection: Upgrade', 'Upgrade: websocket',
        'Sec-WebSocket-Version: 13',
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==');
    my $c = $w->client;
    $c->put(request('GET', 'https://a.good.test:' . $l->port . '/chat', \@ws));
    my $o = $l->accept;
    my $s = $o->next_request;
    is "$s->{head}{':method'} $s->{head}{':protocol'} $s->{head}{':path'}",
        'CONNECT websocket /chat', 'WebSocket: an extended CONNECT';
    $o->reply($s->{id}, 200, [], undef, open => 1);
    my $got = $c->get_answer;
    is $got->{status}, 101, 'its 200 is a 101';
    is field($got, 'sec-websocket-accept'), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=',
        'with the answer to the key';
    $c->put('up');
    ok $o->until(sub { $s->{body} eq 'up' }), 'bytes go up';
    $o->data($s->{id}, 'down');
    is $c->get(4), 'down', 'and down';
    $c->close;
    ok $o->until(sub { $s->{end} || $s->{reset} }), 'and it ends';

    my $t = origin(sub ($c) {
        $c->get_request;
        $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                . "Upgrade: websocket\r\nSec-WebSocket-Accept: "
                . "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
        $c->get_eof;
    }, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });
    $l = Weir::H3->listener(settings => {}, port => $t->port);
    for my $time ('an origin that takes none over HTTP/3', 'again') {
        $c = $w->client;
        $c->put(request('GET', 'https://b.good.test:' . $l->port . '/chat',
            \@ws));
        is $c->get_answer->{status}, 101, "$time: over TCP";
        $c->close;
    }
    $w->stop;
}
done_testing;
