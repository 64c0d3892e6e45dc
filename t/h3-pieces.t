#!/usr/bin/perl
# HTTP/3: the control stream, cut in two behind each of its bytes.  QUIC may
# bring a stream in any pieces, and no piece may end the program.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H3;

my $w = Weir->start;
my @own = (':method', 'GET', ':scheme', 'http', ':authority', 'weir.invalid',
    ':path', '/');

sub client() { return Weir::H3->client(port => $w->port, bare => 1) }

sub served($c) { return $c->answer($c->request([@own]))->{status} // '' }

# The streams of one client, the first of which is the control stream.
sub cut_at($bytes, $cut)
{
    my $c  = client();
    my $id = $c->open_stream('uni');
    $c->raw($id, substr $bytes, 0, $cut) if $cut;
    my $first = served($c); # by now the first piece was read
    $c->raw($id, substr $bytes, $cut) if $cut < length $bytes;
    return ($c, $first, $c->{gone} ? '' : served($c));
}

# Its type in one byte and in two, as both are right (RFC 9000 section 16).
for my $type ("\0", "\x40\0") {
    my $bytes = $type . Weir::H3->settings({ 1 => 0, 6 => 65536, 0x21 => 99 })
        . join '', map { Weir::H3->frame(@$_) } [ 0x21, 'ignored' ],
        [ 0xf0700, "\0u=1" ], [ 0xf0700, "\x40\x04" ], [ 0x21, '' ],
        [ 0xf0700, "\x04u=3, i" ], [ 0xd, "\x05" ], [ 7, "\0" ];
    my @wrong;
    for my $cut (0 .. length $bytes) {
        my ($c, @status) = cut_at($bytes, $cut);
        push @wrong, $cut if "@status" ne '200 200';
        $c->close;
    }
    is "@wrong", '', 'whole or in two pieces: type of ' . length $type;
}

# What is wrong is told, however it comes.
my $good = "\0" . Weir::H3->settings({});
for (
    [ 'of no request', [ 0xf0700, "\x03u=1" ], 'ID_ERROR' ],
    [ 'of a push', [ 0xf0701, "\0u=1" ], 'ID_ERROR' ],
    [ 'of nothing', [ 0xf0700, '' ], 'FRAME_ERROR' ],
    [ 'of half a number', [ 0xf0700, "\x40" ], 'FRAME_ERROR' ],
) {
    my ($what, $frame, $code) = @$_;
    my $bytes = $good . Weir::H3->frame(@$frame);
    my %seen;
    for my $cut (length($good) .. length $bytes) {
        my ($c) = cut_at($bytes, $cut);
        $c->until(sub { $c->{gone} });
        $seen{ $c->ending }++;
        $c->close;
    }
    is join(' ', sort keys %seen), "application $code", "a priority $what";
}
{
    my ($c) = cut_at("\0" . Weir::H3->frame(0xf0700, "\0u=1"), 3);
    $c->until(sub { $c->{gone} });
    is $c->ending, 'application MISSING_SETTINGS', 'a priority before SETTINGS';
}
is served(client()), 200, 'others are served';
$w->stop;
done_testing;
