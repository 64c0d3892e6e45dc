#!/usr/bin/perl
# Too many, too slow, too much: what the limits do, and that others do not
# suffer.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Weir::H2;

my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

# ---- more work than workers
{
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.workers=1',
        'proxy.queue=2', 'proxy.queue_s=1' ]);
    my $l = listener();
    my $c = $w->client;
    $c->put(request('GET', "http://${\ $l->addr}/"));
    my $s = $l->accept;
    $s->get_request; # the only worker waits for this answer
    my @more = map { $w->client } 1 .. 4;
    $_->put(request('GET', "http://${\ $l->addr}/")) for @more;
    for my $n (1 .. 4) {
        my $got = $more[ $n - 1 ]->get_answer;
        is $got->{status}, 503, "no worker: 503 for client $n";
        like field($got, 'proxy-status'), qr/error=/, 'with Proxy-Status';
        is $more[ $n - 1 ]->get_eof, '', 'and the end';
    }
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'who was first is served';
    $c->put(request('GET', "http://${\ $l->addr}/"));
    $s->get_request;
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'and served again';
    $w->stop;
}
{ # one that waits within queue_s is served
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.workers=1',
        'proxy.queue=2', 'proxy.queue_s=20' ]);
    my $l = listener();
    my ($c1, $c2) = ($w->client, $w->client);
    $c1->put(request('GET', "http://${\ $l->addr}/", ['Connection: close']));
    my $s = $l->accept;
    $s->get_request;
    $c2->put(request('GET', "http://${\ $l->addr}/", ['Connection: close']));
    ok $c2->silent(0.3), 'the second waits';
    $s->put($ok);
    is $c1->get_answer->{body}, 'ok', 'the first is served';
    $s->get_request;
    $s->put($ok);
    is $c2->get_answer->{body}, 'ok', 'then the second';
    $w->stop;
}

# ---- slow heads
{
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.head_s=1',
        'proxy.idle_s=5' ]);
    my $c = $w->client;
    $c->put("GET http://x.test/ HTTP/1.1\r\n");
    my $from = time;
    my $got  = $c->get_answer;
    is $got->{status}, 408, 'a head that does not end in head_s: 408';
    is $c->get_eof, '', 'and the end';
    cmp_ok time - $from, '>=', 0.8, 'not before';
    $c    = $w->client; # a byte now and then does not help
    $from = time;
    for my $byte (split //, "GET http://x.test/ HTTP/1.1\r\nX: " . 'y' x 99) {
        last if !$c->put($byte) || !$c->silent(0.1);
    }
    is $c->get_answer->{status}, 408, 'byte by byte neither';
    cmp_ok time - $from, '<', 6, 'head_s counts from the first byte';
    my $l = listener();
    $c = $w->client;
    $c->put("POST http://${\ $l->addr}/ HTTP/1.1\r\nHost: x\r\n"
            . "Content-Length: 5\r\n\r\n");
    my $s = $l->accept;
    $s->get_head;
    for my $byte (split //, 'hello') { # a body may take longer than a head
        select undef, undef, undef, 0.4;
        $c->put($byte);
        $s->get(1);
    }
    $s->put($ok);
    is $c->get_answer->{body}, 'ok', 'a slow body is not a slow head';
    $w->stop;
}
{ # slow ones do not hold the fast ones up
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.workers=32' ]);
    my @slow = map { $w->client } 1 .. 100;
    $_->put("GET http://x.test/ HT") for @slow;
    my $o = origin(sub ($c) { $c->put($ok) while $c->get_request });
    my $c = $w->client;
    my $n = 0;
    for (1 .. 50) {
        $n++ if $c->ask('GET', "http://${\ $o->addr}/")->{body} eq 'ok';
    }
    is $n, 50, 'a client beside 100 unfinished heads is served';
    $w->stop;
}
{ # nor do those who begin with TLS and do not go on
    my $w = Weir->start(set => [ 'proxy.workers=4', 'proxy.head_s=60' ]);
    my $o = origin(sub ($c) { $c->put($ok) while $c->get_request });
    my @slow = map { $w->client } 1 .. 20;
    for my $i (0 .. $#slow) {
        $slow[$i]->connect($o->addr) if $i % 2; # the others mean weir itself
        $slow[$i]->put("\x16\x03\x01\x02\x00\x01\x00");
    }
    my $c = $w->client;
    my $n = 0;
    for (1 .. 50) {
        $n++ if $c->ask('GET', "http://${\ $o->addr}/")->{body} eq 'ok';
    }
    is $n, 50, 'a client beside 20 unfinished ClientHellos is served';
    unlike $w->log, qr/ClientHello/, 'while they wait';
    $w->stop;
    $w = Weir->start(set => [ 'proxy.head_s=1' ]);
    $c = $w->client;
    $c->put("\x16\x03\x01\x02\x00\x01\x00");
    is $c->get_eof, '', 'after head_s such a client is left';
    like $w->wait_log(qr/ClientHello/), qr/ close .*why=late/, 'as a late one';
    $w->stop;
}

# ---- descriptors
{
    my $r = run([ 'sh', '-c', 'ulimit -S -n 64; ulimit -H -n 200; '
        . "HOME=${\ scratch('home', 1)} exec ${\ Weir::binary()} -t" ]);
    is $r->{exit}, 0, 'a weir with few descriptors starts';
    # the program is wrapped so that its limits are set first
    my $wrap = spew(scratch('wrap'), "#!/bin/sh\nulimit -S -n 64\n"
            . "ulimit -H -n 100\nexec $ENV{WEIR} \"\$@\"\n");
    chmod 0755, $wrap;
    my $w = do {
        local $ENV{WEIR} = $wrap;
        Weir->start(set => ['intercept.enable=no']);
    };
    like slurp("/proc/${\ $w->pid}/limits"), qr/Max open files\s+100\s+100/,
        'the soft limit is raised to the hard one';
    my @c = map { $w->client } 1 .. 150;
    my $line = $w->wait_log(qr/descriptor/i);
    ok $line, 'out of descriptors: the log says so';
    my ($before) = map { (split ' ')[13] + (split ' ')[14] }
        slurp("/proc/${\ $w->pid}/stat");
    select undef, undef, undef, 1.5; # the span over which CPU is measured
    my ($after) = map { (split ' ')[13] + (split ' ')[14] }
        slurp("/proc/${\ $w->pid}/stat");
    cmp_ok $after - $before, '<', 50, 'without spinning';
    my $n = () = $w->log =~ /descriptor/gi;
    cmp_ok $n, '<=', 2, 'in one line';
    $_->close for @c;
    my $answer = wait_for('weir to accept again', sub {
        my $c = $w->client;
        return $c->ask('GET', '/', [ 'Host: ' . $w->addr ])->{status};
    });
    is $answer, 200, 'and it goes on when there are some again';
    $w->stop;
}

# ---- heads and targets: the limits are settings
{
    my $w = Weir->start(set => [ 'intercept.enable=no',
        'proxy.head_bytes=1000', 'proxy.target_bytes=100', 'proxy.fields=5' ]);
    my $to = 'http://127.0.0.1/';
    is $w->client->ask('GET', $to . 'a' x 100)->{status}, 414, 'target_bytes';
    is $w->client->ask('GET', $to, [ 'X: ' . 'a' x 1000 ])->{status}, 431,
        'head_bytes';
    is $w->client->ask('GET', $to, [ map { "X$_: y" } 1 .. 6 ])->{status}, 431,
        'fields';
    $w->stop;
}

# ---- threads: started when needed, no more than settings say
{
    my $w = Weir->start(set => [ 'intercept.enable=no', 'proxy.workers=4' ]);
    my $rest = $w->status('Threads');
    cmp_ok $rest, '<=', 8, 'few threads at rest';
    cmp_ok $w->status('VmRSS'), '<', 8 * 1024, 'in little memory'
        if $ENV{WEIR} !~ /asan|tsan/;
    my @idle = map { $w->client } 1 .. 50;
    my $o = origin(sub ($c) { $c->put($ok) while $c->get_request });
    for my $c (@idle) {
        $c->ask('GET', "http://${\ $o->addr}/")->{body} eq 'ok'
            or fail('a kept client is served');
    }
    cmp_ok $w->status('Threads'), '<=', $rest + 8,
        '50 idle clients hold no threads';
    cmp_ok $w->status('VmRSS'), '<', 10 * 1024, 'and it is small'
        if $ENV{WEIR} !~ /asan|tsan/;
    $w->stop;
}

# ---- more streams at once than there are threads to connect them
{
    my $w = Weir->start(set => [ 'proxy.exchanges=1', 'proxy.queue=1' ]);
    my $o = origin(sub ($c) { $c->put($ok) while $c->get_request });
    my $c = Weir::H2->client($w->client);
    my @id = map { 2 * $_ - 1 } 1 .. 100;
    $c->{wire}->put(join '', map {
        $c->frame('HEADERS', 5, $_, Weir::H2::hpack(Weir::H2::get($o->addr)))
    } @id);
    is join(' ', map { $c->answer($_)->{status} } @id),
        join(' ', map { 200 } @id), 'streams wait for one another';
    $w->stop;
}

done_testing;
