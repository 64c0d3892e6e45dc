# H2.pm - HTTP/2 frame by frame, for what no honest client or origin sends.
#
# A Weir::H2 sits on a Weir::Wire, as a client or as an origin.  It sends what
# it is told to, right or wrong, and keeps what came, by stream.  Header blocks
# are written as literals; those that come are decoded in full (RFC 7541).

package Weir::H2;
use v5.36;
use Weir ();

use constant PREFACE => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

our %TYPE = (DATA => 0, HEADERS => 1, PRIORITY => 2, RST_STREAM => 3,
    SETTINGS => 4, PUSH_PROMISE => 5, PING => 6, GOAWAY => 7,
    WINDOW_UPDATE => 8, CONTINUATION => 9);
our %FLAG = (END_STREAM => 1, ACK => 1, END_HEADERS => 4, PADDED => 8,
    PRIORITY => 32);
our @CODE = qw(NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR
    SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR REFUSED_STREAM CANCEL
    COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY
    HTTP_1_1_REQUIRED);

# ---- HPACK ----------------------------------------------------------------------

my @static = map { [ /^(\S+)(?: (.*))?$/ ? ($1, $2 // '') : () ] } split /\n/,
    <<'TABLE';
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
TABLE

# The code is canonical: lengths are enough (RFC 7541 appendix B), here for
# those characters that a field may have.
my %huffman;
{
    my @by = ([5, '012aceiost'], [6, ' %-./3456789=A_bdfghlmnpru'],
        [7, ':BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz'], [8, '&*,;XZ'],
        [10, '!"()?'], [11, "'+|"], [12, '#>'], [13, "\0\$\@[]~"], [14, '^}'],
        [15, '<`{']);
    my ($code, $was) = (0, 5);
    for my $row (@by) {
        my ($len, $chars) = @$row;
        $code <<= $len - $was;
        $was = $len;
        $huffman{ sprintf '%0*b', $len, $code++ } = $_ for split //, $chars;
    }
}

sub huffman_text($raw)
{
    my ($text, $bits) = ('', '');
    for my $bit (split //, unpack 'B*', $raw) {
        $bits .= $bit;
        next if !exists $huffman{$bits};
        $text .= $huffman{$bits};
        $bits = '';
    }
    return $text;
}

sub hpack_int($n, $prefix, $first)
{
    my $max = 2**$prefix - 1;
    return chr($first | $n) if $n < $max;
    my $out = chr($first | $max);
    $n -= $max;
    while ($n > 127) {
        $out .= chr(128 | $n & 127);
        $n >>= 7;
    }
    return $out . chr $n;
}

sub hpack_string($s)
{
    return hpack_int(length $s, 7, 0) . $s;
}

# Literals that are not indexed: name, value, name, value ...
sub hpack(@fields)
{
    my $out = '';
    while (my ($name, $value) = splice @fields, 0, 2) {
        $out .= "\0" . hpack_string($name) . hpack_string($value);
    }
    return $out;
}

sub take_int($block, $prefix)
{
    my $max = 2**$prefix - 1;
    my $n   = ord(substr $$block, 0, 1, '') & $max;
    return $n if $n < $max;
    for (my $shift = 0;; $shift += 7) {
        my $byte = ord substr $$block, 0, 1, '';
        $n += ($byte & 127) << $shift;
        return $n if !($byte & 128);
    }
}

sub take_string($block)
{
    my $coded = ord($$block) & 128;
    my $raw   = substr $$block, 0, take_int($block, 7), '';
    return $coded ? huffman_text($raw) : $raw;
}

sub indexed($self, $i)
{
    my $found = $i <= 61 ? $static[ $i - 1 ] : $self->{table}[ $i - 62 ];
    return $found // die "HPACK index $i\n";
}

# [name, value] pairs of a block; the table is kept for the next.
sub unpack_block($self, $block)
{
    my @fields;
    while (length $block) {
        my $byte = ord $block;
        if ($byte & 128) {
            push @fields, $self->indexed(take_int(\$block, 7));
            next;
        }
        if (($byte & 0xe0) == 0x20) {
            $self->{table_max} = take_int(\$block, 5);
            $self->trim_table;
            next;
        }
        my $keep = $byte & 64;
        my $i    = take_int(\$block, $keep ? 6 : 4);
        my $name = $i ? $self->indexed($i)->[0] : take_string(\$block);
        push @fields, [ $name, take_string(\$block) ];
        if ($keep) {
            unshift $self->{table}->@*, $fields[-1];
            $self->trim_table;
        }
    }
    return \@fields;
}

sub trim_table($self)
{
    my $n = 0;
    for my $i (0 .. $#{ $self->{table} }) {
        my $f = $self->{table}[$i];
        $n += 32 + length($f->[0]) + length $f->[1];
        if ($n > $self->{table_max}) {
            splice $self->{table}->@*, $i;
            last;
        }
    }
}

# ---- a side -----------------------------------------------------------------------

# %o: bare => 1: send no preface and no SETTINGS.
sub client($class, $wire, %o)
{
    my $self = $class->side($wire);
    $self->{next} = 1;
    $self->{wire}->put(PREFACE . $self->frame('SETTINGS', 0, 0,
        $o{settings} // '')) if !$o{bare};
    return $self;
}

sub server($class, $wire, %o)
{
    my $self = $class->side($wire);
    my $got  = $wire->get(length PREFACE);
    die "no preface: $got\n" if $got ne PREFACE;
    $self->put('SETTINGS', 0, 0, $o{settings} // '') if !$o{bare};
    return $self;
}

sub side($class, $wire)
{
    return bless { wire => $wire, streams => {}, table => [],
        table_max => 4096, n => {} }, $class;
}

sub setting(@pairs)
{
    return pack '(nN)*', @pairs;
}

sub flags($text)
{
    my $n = 0;
    $n |= $FLAG{$_} // die "flag $_" for split ' ', $text;
    return $n;
}

# The bytes of a frame.  $flags: a number, or names with spaces between.
sub frame($self, $type, $flags, $id, $payload = '')
{
    my $len = length $payload;
    $flags = flags($flags) if $flags !~ /^\d+$/;
    return pack('CnCCN', $len >> 16, $len & 0xffff, $TYPE{$type} // $type,
        $flags, $id) . $payload;
}

sub put($self, @frame)
{
    return $self->{wire}->put($self->frame(@frame));
}

# What the peer lets us send on a stream (0: on the connection), if the user
# counts in {used} what he sends.
sub window($self, $id)
{
    return ($id ? $self->{settings}{4} // 65535 : 65535)
        + ($self->stream($id)->{window} // 0) - ($self->{used}{$id} // 0);
}

# Open a stream with a request; returns its id.  %o: end => 0: content follows.
sub request($self, $fields, %o)
{
    my $id = $o{id} // $self->{next};
    $self->{next} = $id + 2;
    $self->put('HEADERS', 4 | (($o{end} // 1) ? 1 : 0), $id, hpack(@$fields));
    return $id;
}

# The pseudo-fields of a request to $authority.
sub get($authority, $path = '/', $method = 'GET', $scheme = 'http')
{
    return (':method', $method, ':scheme', $scheme, ':authority', $authority,
        ':path', $path);
}

sub data($self, $id, $bytes, $end = 0)
{
    return $self->put('DATA', $end ? 1 : 0, $id, $bytes);
}

# The next frame: { type, flags, id, payload, and what it says }; undef: the
# connection has ended.  SETTINGS and PING are acknowledged, unless {mute}.
sub get_frame($self)
{
    my $head = $self->{wire}->get(9);
    return undef if length $head < 9;
    my ($high, $low, $type, $flags, $id) = unpack 'CnCCN', $head;
    my ($name) = grep { $TYPE{$_} == $type } keys %TYPE;
    my $f = { type => $name // $type, flags => $flags,
        id => $id & 0x7fffffff, payload =>
            $self->{wire}->get($high << 16 | $low) };
    $self->{n}{ $f->{type} }++;
    $self->note($f);
    return $f;
}

sub note($self, $f)
{
    my $s = $self->stream($f->{id});
    my $type = $f->{type};
    if ($type eq 'HEADERS' || $type eq 'CONTINUATION') {
        my $at = $f->{payload};
        if ($type eq 'HEADERS') {
            my $pad = $f->{flags} & 8 ? ord substr $at, 0, 1, '' : 0;
            substr $at, 0, 5, '' if $f->{flags} & 32;
            substr $at, -$pad, $pad, '' if $pad;
            $self->{block} = '';
            $self->{ends} = $f->{flags} & 1;
        }
        $self->{block} .= $at;
        if ($f->{flags} & 4) {
            my $fields = $self->unpack_block($self->{block});
            $self->take_head($s, $fields);
            $s->{end} = 1 if $self->{ends};
        }
    } elsif ($type eq 'DATA') {
        $s->{body} .= $f->{payload};
        $s->{end} = 1 if $f->{flags} & 1;
    } elsif ($type eq 'RST_STREAM') {
        $f->{code} = $s->{reset} = $CODE[ unpack 'N', $f->{payload} ];
    } elsif ($type eq 'GOAWAY') {
        my ($last, $code) = unpack 'NN', $f->{payload};
        $self->{goaway} = $f->{code} = $CODE[$code] // $code;
        $self->{last} = $last;
    } elsif ($type eq 'PING' && !($f->{flags} & 1)) {
        $self->{last_ping} = $f->{payload};
        $self->put('PING', 'ACK', 0, $f->{payload}) if !$self->{mute};
    } elsif ($type eq 'WINDOW_UPDATE') {
        $s->{window} += unpack 'N', $f->{payload};
    } elsif ($type eq 'SETTINGS' && !($f->{flags} & 1)) {
        my %set = unpack '(nN)*', $f->{payload};
        $self->{settings}{$_} = $set{$_} for keys %set;
        $self->put('SETTINGS', 'ACK', 0) if !$self->{mute};
    }
}

sub take_head($self, $s, $fields)
{
    my %pseudo = map { @$_ } grep { $_->[0] =~ /^:/ } @$fields;
    my $head = { fields => [ grep { $_->[0] !~ /^:/ } @$fields ], %pseudo };
    if (!%pseudo) {
        $s->{trailers} = $head->{fields};
    } else {
        push $s->{heads}->@*, $head;
        @$s{qw(status fields head)} =
            ($pseudo{':status'}, $head->{fields}, $head);
    }
}

# Read on until $so is true, or the connection ends; what $so said last.
sub until($self, $so)
{
    my $answer;
    1 while !($answer = $so->()) && $self->get_frame;
    return $answer || $so->();
}

sub stream($self, $id)
{
    return $self->{streams}{$id} //= { id => $id, body => '', heads => [] };
}

# The answer on a stream, to its end or reset: the stream.
sub answer($self, $id)
{
    my $s = $self->stream($id);
    $self->until(sub { $s->{end} || $s->{reset} || $self->{goaway} });
    return $s;
}

# As a server: the next stream on which a request's head has come.
sub next_request($self)
{
    my $s;
    $self->until(sub {
        ($s) = grep { !$_->{seen} && $_->{heads}->@* }
            sort { $a->{id} <=> $b->{id} } values $self->{streams}->%*;
        return defined $s;
    });
    $s->{seen} = 1 if $s;
    return $s;
}

sub reply($self, $id, $status, $fields = [], $body = undef, %o)
{
    $self->put('HEADERS', 4 | (defined $body || $o{open} ? 0 : 1), $id,
        hpack(':status', $status, @$fields));
    $self->data($id, $body, !$o{open}) if defined $body;
}

# The connection's end, with all frames before it read: "GOAWAY code" if one
# came, else how it ended.
sub ending($self)
{
    1 while $self->get_frame;
    return $self->{goaway} // $self->{wire}->how;
}

# Send a PING and read until its answer; false: the connection has ended.
sub alive($self)
{
    my $f;
    $self->put('PING', 0, 0, 'are you?');
    while ($f = $self->get_frame) {
        return 1 if $f->{type} eq 'PING' && $f->{flags} & 1;
    }
    return 0;
}

# ---- a wire through a stream ------------------------------------------------------

# What a CONNECT on a stream leads to: bytes both ways, within the windows of
# both sides, and TLS inside of it if wanted.  As good as a Weir::Wire.
package Weir::H2::Wire;
use v5.36;
use parent -norequire, 'Weir::Wire';
use Net::SSLeay ();

use constant { MAX_FRAME => 16384, AHEAD => 32768 };

# %o: frame => the largest DATA that we send.
sub connect($class, $h2, $target, %o)
{
    my $id = $h2->request([ ':method', 'CONNECT', ':authority', $target ],
        end => 0);
    my $s = $h2->stream($id);
    $h2->until(sub { $s->{status} || $s->{reset} });
    die "CONNECT $target: " . ($s->{status} // $s->{reset}) . "\n"
        if ($s->{status} // 0) != 200;
    return $class->on($h2, $id, %o);
}

# A stream that carries bytes already.
sub on($class, $h2, $id, %o)
{
    $h2->{flow} //= { unread => 0 };
    return bless { h2 => $h2, id => $id, ahead => '', end => undef,
        limit => Weir::LIMIT, frame => $o{frame} // MAX_FRAME, unread => 0 },
        $class;
}

# Become TLS.  %o: sni, alpn [].  What the other side shows is not verified.
sub tls_client($self, %o)
{
    my $ctx = Net::SSLeay::CTX_new_with_method(Net::SSLeay::TLS_client_method());
    Net::SSLeay::CTX_set_alpn_protos($ctx, $o{alpn}) if $o{alpn};
    my $ssl = Net::SSLeay::new($ctx);
    Net::SSLeay::CTX_free($ctx);
    @$self{qw(in out)} = map { Net::SSLeay::BIO_new(Net::SSLeay::BIO_s_mem()) }
        1 .. 2;
    Net::SSLeay::set_bio($ssl, $self->{in}, $self->{out});
    Net::SSLeay::set_tlsext_host_name($ssl, $o{sni}) if $o{sni};
    Net::SSLeay::set_connect_state($ssl);
    while (Net::SSLeay::do_handshake($ssl) != 1) {
        $self->flush_tls;
        $self->raw_fill or die "TLS in a stream: $self->{end}\n";
        Net::SSLeay::BIO_write($self->{in}, $self->raw_take);
    }
    $self->{ssl} = $ssl;
    return $self->flush_tls;
}

sub DESTROY($self)
{
    Net::SSLeay::free($self->{ssl}) if $self->{ssl};
}

sub flush_tls($self)
{
    while (Net::SSLeay::BIO_pending($self->{out})) {
        $self->raw_put(Net::SSLeay::BIO_read($self->{out})) or return 0;
    }
    return 1;
}

# What weir lets us send now.
sub room($self)
{
    my $h2 = $self->{h2};
    my $s  = $h2->stream($self->{id});
    my ($one, $all) = (($h2->{settings}{4} // 65535) + ($s->{window} // 0),
        65535 + ($h2->stream(0)->{window} // 0));
    $_ -= $s->{sent} // 0 for $one;
    $_ -= $h2->{sent} // 0 for $all;
    return $one < $all ? $one : $all;
}

sub raw_put($self, $bytes)
{
    my ($h2, $s) = ($self->{h2}, $self->{h2}->stream($self->{id}));
    while (length $bytes) {
        my $n;
        $h2->until(sub { ($n = $self->room) > 0 || $self->is_over });
        return 0 if $s->{reset} || $n <= 0;
        $n = $self->{frame} if $n > $self->{frame};
        my $part = substr $bytes, 0, $n, '';
        $h2->data($self->{id}, $part) or return 0;
        $_ += length $part for $s->{sent}, $h2->{sent};
    }
    return 1;
}

sub is_over($self)
{
    my $s = $self->{h2}->stream($self->{id});
    return $s->{end} || $s->{reset} || $self->{h2}{wire}->how ne 'open';
}

sub raw_fill($self)
{
    my $s = $self->{h2}->stream($self->{id});
    $self->{h2}->until(sub { length $s->{body} || $self->is_over });
    return 1 if length $s->{body};
    $self->{end} = $s->{reset} ? 'reset' : $s->{end} ? 'eof' : 'cut';
    return 0;
}

sub raw_take($self)
{
    my ($h2, $s) = ($self->{h2}, $self->{h2}->stream($self->{id}));
    my $bytes = substr $s->{body}, 0, length $s->{body}, '';
    for (["$self->{id}", \$self->{unread}], [ 0, \$h2->{flow}{unread} ]) {
        my ($id, $unread) = @$_;
        $$unread += length $bytes;
        next if $$unread < AHEAD || $s->{reset} || ($id && $s->{end});
        $h2->put('WINDOW_UPDATE', 0, $id, pack 'N', $$unread);
        $$unread = 0;
    }
    return $bytes;
}

sub put($self, $bytes)
{
    return $self->raw_put($bytes) if !$self->{ssl};
    while (length $bytes) {
        my $n = Net::SSLeay::write($self->{ssl}, substr $bytes, 0, MAX_FRAME);
        die "TLS in a stream: write\n" if $n <= 0;
        substr $bytes, 0, $n, '';
        $self->flush_tls or return 0;
    }
    return 1;
}

sub fill($self, $what = 'read')
{
    while (!$self->{end}) {
        if ($self->{ssl}) {
            my $got = Net::SSLeay::read($self->{ssl});
            if (defined $got && length $got) {
                $self->{ahead} .= $got;
                return 1;
            }
            if (Net::SSLeay::get_shutdown($self->{ssl}) & 2) {
                $self->{end} = 'eof';
                last;
            }
        }
        $self->raw_fill or last;
        if (!$self->{ssl}) {
            $self->{ahead} .= $self->raw_take;
            return 1;
        }
        Net::SSLeay::BIO_write($self->{in}, $self->raw_take);
    }
    return 0;
}

sub shut($self)
{
    $self->{h2}->data($self->{id}, '', 1);
}

sub reset($self)
{
    $self->{h2}->put('RST_STREAM', 0, $self->{id}, pack 'N', 8);
    $self->{end} //= 'closed';
}

sub close($self)
{
    $self->reset if !$self->is_over;
}

1;
