#!/usr/bin/perl
# TERM, INT, HUP, USR1, PIPE: what each does to work in flight.
use v5.36;
use POSIX qw(WNOHANG);
use Test::More;
use Time::HiRes qw(time);
use Weir;

my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";

# A weir with an answer under way and a tunnel: (weir, client, origin, ...).
sub busy(@set)
{
    my $w = Weir->start(set => [ 'intercept.enable=no', @set ]);
    my $l = listener();
    my $c = $w->client;
    $c->put(request('GET', "http://${\ $l->addr}/"));
    my $s = $l->accept;
    $s->get_request;
    $s->put("${ok}hello");
    $c->get_until(qr/hello/);
    my $tc = $w->client;
    $tc->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n");
    my $ts = $l->accept;
    $tc->get_answer(connect => 1);
    return ($w, $c, $s, $tc, $ts);
}

# Waits until nobody listens on weir's port.
sub wait_closed($w)
{
    return wait_for('the listener to be closed', sub {
        my $sock = IO::Socket::IP->new(PeerHost => '127.0.0.1',
            PeerPort => $w->port);
        return !$sock;
    });
}

for my $signal ('TERM', 'INT') {
    my ($w, $c, $s, $tc, $ts) = busy();
    my $idle = $w->client;
    $w->signal($signal);
    ok wait_closed($w), "$signal: no new connections";
    is $idle->get_eof, '', "$signal: an idle client is let go";
    is waitpid($w->pid, WNOHANG), 0, "$signal: weir still runs";
    $s->put('world');
    is $c->get(5), 'world', "$signal: the answer under way is finished";
    is $c->get_eof, '', "$signal: and then the connection";
    is $c->how, 'eof', "$signal: in order";
    $tc->put('up');
    is $ts->get(2), 'up', "$signal: a tunnel goes on";
    $ts->put('down');
    is $tc->get(4), 'down', "$signal: both ways";
    $tc->close;
    $ts->get_eof;
    $ts->close;
    is reap($w), 0, "$signal: when all has ended, exit 0";
    unlike $w->log, qr/Sanitizer|runtime error/, "$signal: without a report";
}
{ # the answer says that it is the last one
    my ($w, $c, $s) = busy();
    my $l = listener();
    my $c2 = $w->client;
    $c2->put(request('GET', "http://${\ $l->addr}/"));
    my $s2 = $l->accept;
    $s2->get_request;
    $w->signal('TERM');
    wait_closed($w);
    $s2->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    my $got = $c2->get_answer;
    is $got->{body}, 'ok', 'draining: an answer not yet begun is given';
    like field($got, 'connection'), qr/close/i, 'and says close';
    $w->signal('KILL');
    reap($w);
}
{ # grace_s
    my ($w, $c, $s, $tc, $ts) = busy('proxy.grace_s=1');
    my $from = time;
    $w->signal('TERM');
    is reap($w), 0, 'after grace_s it ends, exit 0';
    my $took = time - $from;
    cmp_ok $took, '>=', 0.9, 'not before';
    cmp_ok $took, '<', 10, 'nor much later';
    ok !$c->get_answer->{complete}, 'what was cut looks cut';
    $tc->get_eof;
    isnt $tc->how, 'open', 'the tunnel is closed';
}
for my $second ('TERM', 'INT') {
    my ($w) = busy('proxy.grace_s=600');
    $w->signal('TERM');
    wait_closed($w);
    my $from = time;
    $w->signal($second);
    my $code = reap($w);
    cmp_ok time - $from, '<', 10, "a second signal ($second) ends it now";
    ok defined $code, "with code $code";
}
{ # while it waits for an origin that does not answer, or for a connection
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.grace_s=1' ]);
    my $l = listener();
    my $c = $w->client;
    $c->put(request('GET', "http://${\ $l->addr}/"));
    my $s = $l->accept;
    $s->get_request;
    my $half = $w->client;
    $half->put("GET http://x.test/ HTTP/1.1\r\nHo");
    $w->signal('TERM');
    is reap($w), 0, 'an origin that never answers does not hold it';
    unlike $w->log, qr/Sanitizer|runtime error/, 'nor is there a report';
}

{ # nor does a client that does not read
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.grace_s=600' ]);
    my $o = origin(sub ($s) {
        $s->get_request;
        $s->put("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        1 while $s->put('x' x 1000000);
    });
    my $c = $w->client;
    $c->put(request('GET', "http://${\ $o->addr}/"));
    my $n = -1;
    wait_for('weir to be stuck', sub {
        my $before = $n;
        $n = slurp("/proc/${\ $w->pid}/io") =~ /^syscw: (\d+)/m ? $1 : 0;
        select undef, undef, undef, 0.3; # quiet for so long: it waits
        return $n == $before;
    });
    $w->signal('TERM');
    $w->wait_log(qr/ drain .*a second signal/);
    $w->signal('TERM');
    is reap($w), 0, 'a client that does not read is cut by the second signal';
    unlike $w->log, qr/stuck|Sanitizer|runtime error/, 'and nothing is left';
}

# ---- HUP
{
    my $one = listener();
    my $two = listener();
    my $ini = "[intercept]\nenable = no\n[resolve]\nx.test = ";
    my $w   = Weir->start(conf => $ini . $one->addr . "\n");
    my $file = $w->home . '/test.ini';
    my $ask = sub ($l) {
        my $c = $w->client;
        $c->put(request('GET', 'http://x.test/', ['Connection: close']));
        my $s = $l->accept;
        $s->get_request;
        $s->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
                . "Connection: close\r\n\r\nok");
        return $c->get_answer->{body};
    };
    is $ask->($one), 'ok', 'the file as it was at the start';
    spew($file, $ini . $two->addr . "\n");
    $w->signal('HUP');
    $w->wait_log(qr/ reload .*new settings/);
    is $ask->($two), 'ok', 'HUP: the file as it is now';
    spew($file, $ini . $one->addr . "\n[proxy]\nworkers = many\n");
    $w->signal('HUP');
    my $line = $w->wait_log(qr/workers/);
    like $line, qr/\Q$file\E:6:.*\[proxy\] workers/,
        'HUP with a bad file: the log says what and where';
    is $ask->($two), 'ok', 'and the old settings stay';
    spew($file, $ini . $one->addr . "\n");
    $w->signal('HUP');
    wait_for('the third settings', sub {
        my $n = () = $w->log =~ / reload .*new settings/g;
        return $n == 2;
    });
    is $ask->($one), 'ok', 'and a good one is taken again';
    $w->stop;
}

{ # a connection that is kept, on either side, does not keep old settings
    my @l   = (listener(), listener());
    my $ini = "[intercept]\nenable = no\n[resolve]\nx.test = ";
    my $w   = Weir->start(conf => $ini . $l[0]->addr . "\n");
    my $ok  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    my $url = 'http://x.test/';
    my $ask = sub ($c, $s, @fields) {
        $c->put(request('GET', $url, \@fields));
        my $hit = Weir::first_of($l[0], $l[1], grep { defined } $s);
        my $origin = ref $hit eq 'Weir::Listener' ? $hit->accept : $hit;
        $origin->get_request;
        $origin->put($ok);
        is $c->get_answer->{body}, 'ok', 'an answer';
        return ($hit, $origin);
    };
    my ($same, $gone) = ($w->client, $w->client);
    my (undef, $kept) = $ask->($same, undef);
    my ($hit) = $ask->($same, $kept);
    is $hit, $kept, 'a connection is kept for its client';
    (undef, my $cached) = $ask->($gone, $kept, 'Connection: close');
    $gone->get_eof; # now that one is kept for anybody
    spew($w->home . '/test.ini', $ini . $l[1]->addr . "\n");
    $w->signal('HUP');
    $w->wait_log(qr/ reload .*new settings/);
    for my $c ($same, $w->client) {
        $c->put(request('GET', $url));
        is Weir::first_of(@l), $l[1], 'after HUP neither serves';
        my $s = $l[1]->accept;
        is $s->get_request->{target}, '/', 'but the new address';
        $s->put($ok);
        is $c->get_answer->{body}, 'ok', 'a new one does';
    }
    $w->stop;
}

# ---- USR1
{
    my $file = scratch('log');
    my $w = Weir->start(set => [ 'intercept.enable=no', "log.file=$file" ]);
    my $ask = sub ($path) {
        my $c = $w->client;
        my $r = $c->ask('GET', "http://127.0.0.1:${\ closed_port()}/$path");
        $c->close;
        wait_for("the line of $path", sub { slurp($file) =~ /$path/ });
    };
    $ask->('first');
    rename $file, "$file.1" or die "rename: $!";
    $w->signal('USR1');
    wait_for('the new log file', sub { -e $file });
    $ask->('second');
    unlike slurp("$file.1"), qr/second/, 'USR1: the new lines are in a new file';
    unlike slurp($file), qr/first/, 'the old ones in the old';
    $w->stop;
}

# ---- PIPE
{
    my $w = Weir->start(set => ['intercept.enable=no']);
    $w->signal('PIPE');
    my $l = listener();
    for (1 .. 20) {
        my $c = $w->client;
        $c->put(request('GET', "http://${\ $l->addr}/"));
        my $s = $l->accept;
        $s->get_request;
        $c->reset;
        $s->put("HTTP/1.1 200 OK\r\n\r\n" . 'x' x 300_000);
        $s->get_eof;
    }
    is waitpid($w->pid, WNOHANG), 0, 'SIGPIPE does not end it';
    $w->stop;
}

done_testing;
