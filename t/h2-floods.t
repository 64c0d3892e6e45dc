#!/usr/bin/perl
# Peers that make work and ask for nothing: each is told to calm down, and
# costs no memory.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H2;

use constant FLAT_KB => 24576;

# AddressSanitizer keeps what is freed; not so much of it here.
my $w = Weir->start(set => [ 'proxy.head_s=2', 'proxy.idle_s=4' ],
    env => { ASAN_OPTIONS => join ':', $ENV{ASAN_OPTIONS} // (),
        'quarantine_size_mb=1:malloc_context_size=0' });
my $me = $w->addr;
my $l  = listener();

sub get { return Weir::H2::get($me, @_) }

# Send pieces until weir has enough of it, 200 000 at most.
sub pour($begin, $piece)
{
    my $c = Weir::H2->client($w->client);
    $c->{mute} = 1; # an ACK within a header block would be a mistake
    $c->put(@$_) for @$begin;
    my $n = 0;
    while ($n < 200_000) {
        my $batch = join '', map { $c->frame($piece->($n++)) } 1 .. 100;
        last if !eval { $c->{wire}->put($batch) };
        1 while !$c->{goaway} && !$c->{wire}->silent(0) && $c->get_frame;
        last if $c->{goaway} || $c->{wire}->how ne 'open';
    }
    return eval { $c->until(sub { $c->{goaway} }) } // $c->{wire}->how;
}

# Twice: what the first time needs (threads, their stacks) may stay.
sub flood($what, $begin, $piece)
{
    is pour($begin, $piece), 'ENHANCE_YOUR_CALM', "$what: told to calm down";
    my $before = $w->status('VmRSS');
    is pour($begin, $piece), 'ENHANCE_YOUR_CALM', '  each time';
    # What a sanitizer keeps of freed memory is not the program's.
    cmp_ok $w->status('VmRSS') - $before, '<', FLAT_KB, '  memory is flat'
        if $ENV{WEIR} !~ /asan|tsan/;
}

# ---- too much of what is allowed
my $open = [ 'HEADERS', 4, 1, Weir::H2::hpack(get('/', 'POST')) ];

flood('PING', [], sub { ('PING', 0, 0, 'x' x 8) });
flood('SETTINGS', [], sub { ('SETTINGS', 0, 0, Weir::H2::setting(4, 65535)) });
flood('empty SETTINGS', [], sub { ('SETTINGS', 0, 0) });
flood('PRIORITY', [], sub { ('PRIORITY', 0, 2 * $_[0] + 1, pack 'NC', 0, 1) });
flood('WINDOW_UPDATE', [], sub { ('WINDOW_UPDATE', 0, 0, pack 'N', 1) });
flood('WINDOW_UPDATE of a stream', [ $open ],
    sub { ('WINDOW_UPDATE', 0, 1, pack 'N', 1) });
flood('empty DATA', [ $open ], sub { ('DATA', 0, 1) });
flood('padded DATA without content', [ $open ],
    sub { ('DATA', 8, 1, "\x01\0") });
flood('CONTINUATION', [ [ 'HEADERS', 0, 1, Weir::H2::hpack(get()) ] ],
    sub { ('CONTINUATION', 0, 1, Weir::H2::hpack('x', 'y')) });
flood('empty CONTINUATION', [ [ 'HEADERS', 0, 1, Weir::H2::hpack(get()) ] ],
    sub { ('CONTINUATION', 0, 1) });

# ---- streams that come and go
flood('rapid reset', [], sub ($n) {
    my $id = 2 * int($n / 2) + 1;
    return $n % 2 ? ('RST_STREAM', 0, $id, pack 'N', 8)
        : ('HEADERS', 5, $id, Weir::H2::hpack(
            Weir::H2::get($l->addr)));
});
my %provoke = (
    'an overflow of the window' => sub ($id) {
        ('WINDOW_UPDATE', 0, $id, pack 'N', 0x7fffffff);
    },
    'DATA over content-length' => sub ($id) { ('DATA', 1, $id, 'xyz') },
    'trailers that do not end' => sub ($id) {
        ('HEADERS', 4, $id, Weir::H2::hpack('x', 'y'));
    },
);
for my $how (sort keys %provoke) {
    flood("provoked resets, by $how", [], sub ($n) {
        my $id = 2 * int($n / 2) + 1;
        return $n % 2 ? $provoke{$how}->($id)
            : ('HEADERS', 4, $id, Weir::H2::hpack(
                Weir::H2::get($l->addr, '/', 'POST'), 'content-length', 1));
    });
}
flood('provoked resets, by malformed requests', [], sub ($n) {
    return ('HEADERS', 5, 2 * $n + 1, Weir::H2::hpack(get(), 'Upper', 1));
});
flood('streams over the limit', [], sub ($n) {
    return ('HEADERS', 4, 2 * $n + 1, Weir::H2::hpack(
        Weir::H2::get($l->addr, '/', 'POST')));
});

# ---- heads that unpack to much
{
    my $big = Weir::H2::hpack(get()) . "\x40" . "\x01x"
        . Weir::H2::hpack_int(4000, 7, 0) . 'y' x 4000;
    flood('HPACK bomb', [], sub ($n) {
        return ('HEADERS', 5, 2 * $n + 1, ($n ? Weir::H2::hpack(get()) : $big)
            . "\xbe" x 10_000);
    });
}

# ---- who is slow
{
    my $c = Weir::H2->client($w->client);
    $c->{mute} = 1;
    $c->put('HEADERS', 0, 1, Weir::H2::hpack(get()));
    is $c->ending, 'ENHANCE_YOUR_CALM', 'a head that never ends has a limit';
}
{
    my $c = Weir::H2->client($w->client);
    is $c->answer($c->request([ get() ]))->{status}, 200, 'an idle session';
    is $c->ending, 'NO_ERROR', 'ends in time';
}
# ---- ten thousand streams, one after the other, and nothing left of them
{
    my $c = Weir::H2->client($w->client);
    my $good = 0;
    my $ask = sub ($n) {
        my @id = map { $c->request([ get() ]) } 1 .. $n;
        $good += grep { ($c->answer($_)->{status} // 0) == 200 } @id;
        delete $c->{streams}{$_} for @id;
    };
    my $refill = sub { # what was taken from the connection's window
        $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 50_000);
    };
    for (1 .. 20) {
        $ask->(50);
        $refill->();
    }
    my $before = $w->status('VmRSS');
    for (1 .. 200) {
        $ask->(50);
        $refill->();
    }
    is $good, 11_000, '10 000 streams on one connection';
    cmp_ok $w->status('VmRSS') - $before, '<', 4096,
        'and memory is where it was';
}
$w->stop;
done_testing;
