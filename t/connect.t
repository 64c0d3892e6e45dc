#!/usr/bin/perl
# CONNECT and what follows: opaque bytes both ways, each way with its own end.
# RFC 9110 section 9.3.6.
use v5.36;
use Digest::MD5 qw(md5_hex);
use Test::More;
use Time::HiRes qw(time);
use Weir;

my $w = Weir->start(set => ['intercept.enable=no']);

# A tunnel to a listener: the client's wire and the origin's.
sub tunnel($via, $l = listener(), $ahead = '')
{
    my $c = $via->client;
    my $t = $l->addr;
    $c->put("CONNECT $t HTTP/1.1\r\nHost: $t\r\n\r\n$ahead");
    my $s = $l->accept;
    return ($c, $s, $c->get_answer(connect => 1));
}

# ---- the answer
{
    my ($c, $s, $got) = tunnel($w);
    is $got->{status}, 200, 'the target is connected: 200';
    is field($got, $_), undef, "without $_"
        for qw(Content-Length Transfer-Encoding);
    my $bytes = "\0\1\2 not HTTP \r\n\r\n";
    $c->put($bytes);
    is $s->get(length $bytes), $bytes, 'bytes go up as they are';
    $s->put("\xff\xfe\r\n\0");
    is $c->get(5), "\xff\xfe\r\n\0", 'and down';
}
{ # bytes glued to the head
    my $early = "early \x16\x03 bytes";
    my ($c, $s) = tunnel($w, listener(), $early);
    is $s->get(length $early), $early, 'bytes behind the head come first';
    $c->put('then more');
    is $s->get(9), 'then more', 'and then the others';
}
{
    my $l = listener();
    my $c = $w->client;
    $c->put("CONNECT ${\ $l->addr} HTTP/1.0\r\n\r\n");
    my $s = $l->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'HTTP/1.0, without a Host';
    $c->put('x');
    is $s->get(1), 'x', 'is a tunnel too';
}
{ # RFC 9110 section 9.3.6: content of a CONNECT has no meaning
    my $l = listener();
    my $c = $w->client;
    my $t = $l->addr;
    $c->put("CONNECT $t HTTP/1.1\r\nHost: $t\r\nContent-Length: 5\r\n\r\nhello");
    my $got = $c->get_answer(connect => 1);
    if ($got->{status} == 200) {
        is $l->accept->get(5), 'hello', 'CONNECT with a length: all goes up';
    } else {
        is $got->{status}, 400, 'CONNECT with a length is refused';
    }
}
SKIP: {
    my $l = eval { listener(host => '::1') }
        or skip 'this machine has no IPv6', 2;
    my $c = $w->client;
    my $t = "[::1]:" . $l->port;
    $c->put("CONNECT $t HTTP/1.1\r\nHost: $t\r\n\r\n");
    my $s = $l->accept;
    is $c->get_answer(connect => 1)->{status}, 200, 'an IPv6 literal';
    $c->put('x');
    is $s->get(1), 'x', 'carries';
}

# ---- failures
{
    my $port = closed_port();
    my $c    = $w->client;
    my $got  = $c->ask('CONNECT', "127.0.0.1:$port", ["Host: 127.0.0.1:$port"]);
    is $got->{status}, 502, 'refused: 502';
    like field($got, 'proxy-status'), qr/error=connection_refused/,
        'refused: Proxy-Status';
    like $got->{body}, qr/refused/, 'refused: a body that says so';
    $got = $w->client->ask('CONNECT', 'no-such-name.invalid:443',
        ['Host: no-such-name.invalid:443']);
    is $got->{status}, 502, 'unknown name: 502';
    $got = $w->client->ask('CONNECT', "127.0.0.1:$port", ['Host: x',
        'Accept: text/html']);
    like $got->{body}, qr/<!doctype html>.*refused/is, 'HTML for a browser';
}

# ---- ends, each way on its own
{
    my ($c, $s) = tunnel($w);
    $c->put('last words');
    $c->shut;
    is $s->get_eof, 'last words', 'the client\'s end reaches the origin';
    is $s->how, 'eof', 'as an end';
    $s->put("answer $_ ") for 1 .. 3;
    is $c->get(27), 'answer 1 answer 2 answer 3 ', 'which still answers';
    $s->close;
    is $c->get_eof, '', 'until it ends as well';
    is $c->how, 'eof', 'in order';
}
{
    my ($c, $s) = tunnel($w);
    $s->put('banner');
    $s->shut;
    is $c->get_eof, 'banner', 'the origin\'s end reaches the client';
    $c->put('still talking');
    is $s->get(13), 'still talking', 'which may go on';
    $c->close;
    is $s->get_eof, '', 'until it ends as well';
}
for my $who ('client', 'origin') {
    my ($c, $s) = tunnel($w);
    my ($one, $other) = $who eq 'client' ? ($c, $s) : ($s, $c);
    $one->put('x');
    $other->get(1);
    $one->reset;
    $other->get_eof;
    isnt $other->how, 'open', "a reset by the $who ends the other side";
}

# ---- time
{
    my $short = Weir->start(set => [ 'intercept.enable=no', 'proxy.idle_s=3',
        'tunnel.half_closed_s=2' ]);
    { # one clock for both directions: traffic down keeps the quiet way up
        my ($c, $s) = tunnel($short);
        my $from = time;
        while (time - $from < 4) {
            $s->put('x');
            $c->get(1);
            select undef, undef, undef, 0.3; # the rhythm is what is tried
        }
        $c->put('up');
        is $s->get(2), 'up', 'a one-way tunnel outlives idle_s';
        $from = time;
        is $c->get_eof, '', 'quiet both ways, it ends';
        is $s->get_eof, '', 'on both sides';
        cmp_ok time - $from, '>', 2.5, 'not before idle_s';
    }
    {
        my ($c, $s) = tunnel($short);
        $c->shut;
        $s->get_eof;
        my $from = time;
        is $c->get_eof, '', 'half closed and quiet, it ends';
        cmp_ok time - $from, '<', 10, 'after half_closed_s';
    }
    $short->stop;
}

# ---- much
{
    my $size = 30_000_000;
    my $data = join '', map { pack 'N', $_ * 2654435761 % 2**32 }
        1 .. $size / 4;
    my $sum  = md5_hex($data);
    my $echo = origin(sub ($c) { # reads and sends at once
        $c->{limit} = 60;
        my $pid = fork // die;
        if ($pid == 0) {
            $c->put($data);
            $c->shut;
            POSIX::_exit(0);
        }
        $c->note('sum ' . md5_hex($c->get_eof));
        waitpid $pid, 0;
    });
    my $c = $w->client;
    $c->connect($echo->addr);
    my $pid = fork // die;
    if ($pid == 0) {
        $c->put($data);
        $c->shut;
        POSIX::_exit(0);
    }
    is md5_hex($c->get_eof), $sum, '30 MB down while 30 MB go up';
    waitpid $pid, 0;
    ok $echo->wait_note(qr/sum $sum/), '30 MB up while 30 MB come down';
}
{
    my $file = spew(scratch('file'), 'y' x 5_000_000);
    my $o    = origin(sub ($c) {
        while (my $r = $c->get_request) {
            my $body = $r->{body} || 'z' x 3_000_000;
            $c->put("HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
                    . "\r\n\r\n$body");
        }
    });
    my $r = curl($w, '-p', 'http://' . $o->addr . '/');
    is length $r->{out}, 3_000_000, 'curl -p: down';
    $r = curl($w, '-p', '-T', $file, 'http://' . $o->addr . '/');
    is md5_hex($r->{out}), md5_hex('y' x 5_000_000), 'curl -p: up and down';
}

# ---- other clients
{
    my $o = origin(sub ($c) {
        $c->put('220 hello' . "\r\n");
        $c->put('you said ' . $c->get_eof);
    });
    my $in = spew(scratch('in'), 'what socat says');
    my $r  = run([ 'socat', '-t', 20, '-',
        'PROXY:127.0.0.1:127.0.0.1:' . $o->port . ',proxyport=' . $w->port ],
        in => $in);
    is $r->{exit}, 0, 'socat goes through';
    is $r->{out}, "220 hello\r\nyou said what socat says",
        'socat: the origin speaks first, and last';
}
{
    my $certs = certs();
    my $o     = origin(sub ($c) {
        $c->get_until(qr/\n/);
        $c->put("told through TLS\n");
    }, tls => $certs->{good});
    my $r = run([ qw(openssl s_client -quiet -verify_return_error -proxy),
        $w->addr, '-connect', 'localhost:' . $o->port, '-CAfile',
        $certs->{ca}{cert}, '-servername', 'localhost' ],
        in => spew(scratch('in'), "hi\n"));
    like $r->{out}, qr/told through TLS/, 'openssl s_client goes through';
}

# ---- many, and what they cost
{
    my $l     = listener();
    my $before = $w->status('Threads');
    my @pairs = map { [ tunnel($w, $l) ] } 1 .. 50;
    my $n = 0;
    for my $p (@pairs) {
        $p->[0]->put("up $n");
        $p->[1]->get(length "up $n") eq "up $n" or last;
        $p->[1]->put("down $n");
        $p->[0]->get(length "down $n") eq "down $n" or last;
        $n++;
    }
    is $n, 50, '50 tunnels at once, none mixed up';
    my $threads = $w->status('Threads');
    cmp_ok $threads, '<=', $before + 100, 'two threads each at most';
    $_->[0]->close, $_->[1]->get_eof, $_->[1]->close for @pairs;
    my $fds = wait_for('the descriptors of 50 tunnels to be closed', sub {
        $w->n_fds <= $w->{fds} + 20;
    });
    ok $fds, 'their descriptors are given back';
}

$w->stop;
done_testing;
