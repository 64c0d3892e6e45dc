#!/usr/bin/perl
# An origin that cannot be connected to is left alone for a while, then tried.
use v5.36;
use Test::More;
use Time::HiRes qw(time);
use Weir;
use Ways;

my $hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

sub get($w, $port)
{
    return $w->client->ask('GET', "http://127.0.0.1:$port/", ['Connection: close']);
}

sub open_now($got)
{
    return (field($got, 'proxy-status') // '') =~ /breaker open/;
}

# Asks until it is refused by the breaker.  On a slow machine a pause may be
# over before we ask; then this was one more trial, and the next pause is longer.
sub refused($what, $ask)
{
    return wait_for($what, sub {
        my $got = $ask->();
        return open_now($got) && $got;
    });
}
{
    my $w = Weir->start;
    my $port = free_port();
    for my $n (1 .. 5) {
        my $got = get($w, $port);
        is $got->{status}, 502, "failure $n: 502";
        ok !open_now($got), 'was tried';
    }
    like $w->wait_log(qr/ breaker /), qr/127\.0\.0\.1 port $port .*not tried for 1 s/,
        'the log says that it opens';
    my $got = refused('a refusal', sub { get($w, $port) });
    is $got->{status}, 502, 'then it is refused, with the status that it had';
    like $got->{body}, qr/breaker/, 'and a page that says why';
    like $w->wait_log(qr/detail=.*breaker open/), qr/ exchange /, 'the log shows it';
    ok refused('CONNECT to be refused', sub {
        my $c = $w->client;
        $c->put("CONNECT 127.0.0.1:$port HTTP/1.1\r\nHost: x\r\n\r\n");
        return $c->get_answer(connect => 1);
    }), 'CONNECT is refused as well';
    my $other = listener();
    my $c = $w->client;
    $c->put(request('GET', 'http://' . $other->addr . '/'));
    ok $other->accept, 'another origin is not';
    my $from = time; # the trial after a second fails
    wait_for('the trial', sub { !open_now(get($w, $port)) });
    like $w->wait_log(qr/not tried for 2 s/), qr/breaker/, 'a failed trial: twice as long';
    ok refused('another refusal', sub { get($w, $port) }), 'refused again';
    my $l = listener(port => $port); # nobody comes here before the next trial
    my $done = wait_for('the second trial', sub {
        my $c = $w->client;
        $c->put(request('GET', "http://127.0.0.1:$port/"));
        return $c if Weir::first_of($l, $c) == $l;
        $c->get_answer;
        return 0;
    });
    cmp_ok time - $from, '>', 1.9, 'not before its time';
    # one trial: it connects, so all is well
    my $s = $l->accept;
    $s->get_head;
    $s->put($hello);
    is $done->get_answer->{body}, 'hello', 'the trial is served';
    like $w->wait_log(qr/is reached again/), qr/port $port/, 'the log says so';
    $done = $w->client;
    $done->put(request('GET', "http://127.0.0.1:$port/"));
    $s = $l->accept if Weir::first_of($l, $s) == $l; # or the one that is kept
    like $s->get_head, qr{^GET / }, 'and it is asked again';
    $w->stop;
}
{ # only failures to connect count
    my $w = Weir->start;
    my $o = origin(sub ($c) { $c->get_head; $c->reset });
    my @got = map { get($w, $o->port) } 1 .. 8;
    is scalar(grep { open_now($_) } @got), 0, 'an origin that resets is there';
    is $o->n_accepted >= 8, 1, 'and was asked each time';
    my @names = map { $w->client->ask('GET', 'http://no-such-name.invalid/') } 1 .. 8;
    is scalar(grep { open_now($_) } @names), 0, 'a name that is unknown is none';
    $w->stop;
}
{ # one success forgets
    my $w = Weir->start;
    my $port = free_port();
    get($w, $port) for 1 .. 4;
    my $l = listener(port => $port);
    my $c = $w->client;
    $c->put(request('GET', "http://127.0.0.1:$port/", ['Connection: close']));
    my $s = $l->accept;
    $s->get_head;
    $s->put("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    $s->close;
    is $c->get_answer->{status}, 200, 'four failures, then a success';
    close $l->{sock};
    is scalar(grep { open_now(get($w, $port)) } 1 .. 4), 0, 'four more do not open it';
    $w->stop;
}
{
    my $w = Weir->start(set => [ 'upstream.breaker=no' ]);
    my $port = closed_port();
    is scalar(grep { open_now(get($w, $port)) } 1 .. 12), 0, 'breaker = no: always tried';
    $w->stop;
}
done_testing;
