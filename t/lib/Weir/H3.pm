# H3.pm - HTTP/3 frame by frame, for what no honest client or origin sends.
#
# A Weir::H3 is one QUIC connection, as a client (Weir::H3->client) or as an
# origin (Weir::H3->listener, then accept).  quicwire carries its streams and
# datagrams; what goes over them is made and read here, and is used as that of
# Weir::H2 is: request(), data(), reply(), until(), answer(), next_request().
# Field sections are literals and static entries (RFC 9204); no peer may use a
# dynamic table, for none is offered.

package Weir::H3;
use v5.36;
use File::Basename qw(dirname);
use POSIX ();
use Time::HiRes qw(time);
use Weir ();
use Weir::H2 ();

our %TYPE = (DATA => 0, HEADERS => 1, CANCEL_PUSH => 3, SETTINGS => 4,
    PUSH_PROMISE => 5, GOAWAY => 7, MAX_PUSH_ID => 13);
our %SETTING = (QPACK_TABLE => 1, FIELD_SECTION => 6, QPACK_BLOCKED => 7,
    CONNECT_PROTOCOL => 8, H3_DATAGRAM => 0x33);
our %CODE = (
    (map { (0x100 + $_) => (qw(NO_ERROR GENERAL_PROTOCOL_ERROR INTERNAL_ERROR
        STREAM_CREATION_ERROR CLOSED_CRITICAL_STREAM FRAME_UNEXPECTED
        FRAME_ERROR EXCESSIVE_LOAD ID_ERROR SETTINGS_ERROR MISSING_SETTINGS
        REQUEST_REJECTED REQUEST_CANCELLED REQUEST_INCOMPLETE MESSAGE_ERROR
        CONNECT_ERROR VERSION_FALLBACK))[$_] } 0 .. 16),
    0x33 => 'DATAGRAM_ERROR', 0x200 => 'QPACK_DECOMPRESSION_FAILED',
    0x201 => 'QPACK_ENCODER_STREAM_ERROR',
    0x202 => 'QPACK_DECODER_STREAM_ERROR');
our %NUMBER = reverse %CODE;

sub code_name($n)   { $CODE{$n} // $n }
sub code_number($n) { $NUMBER{$n} // $n }

# ---- integers, capsules -----------------------------------------------------------

# RFC 9000 section 16
sub varint($n)
{
    return $n < 1 << 6  ? chr $n
        :  $n < 1 << 14 ? pack('n', $n | 1 << 14)
        :  $n < 1 << 30 ? pack('N', $n | 1 << 31)
        :                 pack('Q>', $n | 3 << 62);
}

# Take one off the front of $$at; undef: it is not whole.
sub take_varint($at)
{
    return undef if !length $$at;
    my $len = 1 << (ord($$at) >> 6);
    return undef if length $$at < $len;
    my $raw = substr $$at, 0, $len, '';
    return unpack('Q>', "\0" x (8 - $len) . $raw) & (1 << 8 * $len - 2) - 1;
}

# RFC 9297 section 3.2
sub capsule($type, $value)
{
    return varint($type) . varint(length $value) . $value;
}

# [type, value] of a whole capsule off the front of $$at; undef: none.
sub take_capsule($at)
{
    my $copy = $$at;
    my $type = take_varint(\$copy) // return undef;
    my $len  = take_varint(\$copy) // return undef;
    return undef if length $copy < $len;
    my $value = substr $copy, 0, $len, '';
    $$at = $copy;
    return [ $type, $value ];
}

# ---- QPACK ------------------------------------------------------------------------

# RFC 9204 appendix A
my @static = map { [ /^(\S+)(?: (.*))?$/ ? ($1, $2 // '') : () ] } split /\n/,
    <<'TABLE';
:authority
:path /
age 0
content-disposition
content-length 0
cookie
date
etag
if-modified-since
if-none-match
last-modified
link
location
referer
set-cookie
:method CONNECT
:method DELETE
:method GET
:method HEAD
:method OPTIONS
:method POST
:method PUT
:scheme http
:scheme https
:status 103
:status 200
:status 304
:status 404
:status 503
accept */*
accept application/dns-message
accept-encoding gzip, deflate, br
accept-ranges bytes
access-control-allow-headers cache-control
access-control-allow-headers content-type
access-control-allow-origin *
cache-control max-age=0
cache-control max-age=2592000
cache-control max-age=604800
cache-control no-cache
cache-control no-store
cache-control public, max-age=31536000
content-encoding br
content-encoding gzip
content-type application/dns-message
content-type application/javascript
content-type application/json
content-type application/x-www-form-urlencoded
content-type image/gif
content-type image/jpeg
content-type image/png
content-type text/css
content-type text/html; charset=utf-8
content-type text/plain
content-type text/plain;charset=utf-8
range bytes=0-
strict-transport-security max-age=31536000
strict-transport-security max-age=31536000; includesubdomains
strict-transport-security max-age=31536000; includesubdomains; preload
vary accept-encoding
vary origin
x-content-type-options nosniff
x-xss-protection 1; mode=block
:status 100
:status 204
:status 206
:status 302
:status 400
:status 403
:status 421
:status 425
:status 500
accept-language
access-control-allow-credentials FALSE
access-control-allow-credentials TRUE
access-control-allow-headers *
access-control-allow-methods get
access-control-allow-methods get, post, options
access-control-allow-methods options
access-control-expose-headers content-length
access-control-request-headers content-type
access-control-request-method get
access-control-request-method post
alt-svc clear
authorization
content-security-policy script-src 'none'; object-src 'none'; base-uri 'none'
early-data 1
expect-ct
forwarded
if-range
origin
purpose prefetch
server
timing-allow-origin *
upgrade-insecure-requests 1
user-agent
x-forwarded-for
x-frame-options deny
x-frame-options sameorigin
TABLE

# A field section of literals: name, value, name, value ...
sub qpack(@fields)
{
    my $out = "\0\0";
    while (my ($name, $value) = splice @fields, 0, 2) {
        $out .= Weir::H2::hpack_int(length $name, 3, 0x20) . $name
            . Weir::H2::hpack_string($value);
    }
    return $out;
}

sub take_text($block, $prefix, $coded)
{
    my $is  = ord($$block) & $coded;
    my $raw = substr $$block, 0, Weir::H2::take_int($block, $prefix), '';
    return $is ? Weir::H2::huffman_text($raw) : $raw;
}

# [name, value] pairs of a field section.
sub unpack_section($block)
{
    my @fields;
    my $needs = Weir::H2::take_int(\$block, 8);
    die "a dynamic table that nobody has offered\n" if $needs;
    Weir::H2::take_int(\$block, 7);
    while (length $block) {
        my $byte = ord $block;
        if (($byte & 0xc0) == 0xc0) {
            push @fields, [ $static[ Weir::H2::take_int(\$block, 6) ]->@* ];
        } elsif (($byte & 0xd0) == 0x50) {
            my $name = $static[ Weir::H2::take_int(\$block, 4) ][0];
            push @fields, [ $name, take_text(\$block, 7, 128) ];
        } elsif (($byte & 0xe0) == 0x20) {
            my $name = take_text(\$block, 3, 8);
            push @fields, [ $name, take_text(\$block, 7, 128) ];
        } else {
            die "a dynamic entry that nobody has offered\n";
        }
    }
    return \@fields;
}

# ---- the program that carries it --------------------------------------------------

my ($pid, $to, $from, $ahead, $errors); # of quicwire
my %conns;     # by number
my %listeners; # by port
my $n_conns = 0;

sub start_program()
{
    return if $pid;
    my $program = dirname($ENV{WEIR}) . '/quicwire';
    pipe my $in, $to   or die "pipe: $!";
    pipe $from, my $out or die "pipe: $!";
    $errors = Weir::scratch('quicwire');
    $pid = fork // die "fork: $!";
    if ($pid == 0) {
        open STDIN,  '<&', $in      or POSIX::_exit(126);
        open STDOUT, '>&', $out     or POSIX::_exit(126);
        open STDERR, '>>', $errors  or POSIX::_exit(126);
        { no warnings 'exec'; exec { $program } $program; }
        print STDERR "$program: $!\n";
        POSIX::_exit(127);
    }
    $ahead = '';
}

# Its pipes end with the test, and it with them.
END {
    if ($pid && close $to) {
        local $?;
        waitpid $pid, 0;
    }
}

sub command($line, $bytes = '')
{
    start_program();
    my $all = "$line\n$bytes";
    while (length $all) {
        my $n = syswrite($to, $all)
            // die "quicwire is gone: ", Weir::slurp($errors);
        substr $all, 0, $n, '';
    }
}

# In a process that was forked: the program is the other's.
sub forked()
{
    close $_ for grep { defined } $to, $from;
    ($pid, $to, $from, $ahead) = ();
    %conns = %listeners = ();
}

# What to wait for beside other things: pump() when it is readable.
sub handle() { $from }

# More of what it says; false: nothing came until $until.
sub read_more($until)
{
    my $set = '';
    vec($set, fileno $from, 1) = 1;
    my $left = $until - time;
    select(my $ready = $set, undef, undef, $left > 0 ? $left : 0) > 0
        or return 0;
    sysread($from, $ahead, 1 << 20, length $ahead)
        or die "quicwire has ended: ", Weir::slurp($errors);
    return 1;
}

# One event, given to whom it concerns; false: none until $until.
sub pump($until)
{
    my $at;
    while (($at = index $ahead, "\n") < 0) {
        return 0 if !read_more($until);
    }
    my ($what, @words) = split ' ', substr $ahead, 0, $at;
    my $len = $what =~ /^(?:data|datagram|cert|token)$/ ? $words[-1] : 0;
    while (length $ahead < $at + 1 + $len) {
        return 0 if !read_more($until);
    }
    substr $ahead, 0, $at + 1, '';
    my $bytes = $len ? substr $ahead, 0, $len, '' : '';
    if ($what eq 'listening') {
        $listeners{ $words[0] } = { port => $words[0], queue => [] };
        $listeners{new} = $listeners{ $words[0] };
    } elsif ($what eq 'accepted') {
        my $l = $listeners{ $words[1] };
        my $c = $conns{ $words[0] } = side('Weir::H3', $words[0]);
        @$c{qw(server o listener)} = (1, $l->{o}, $l);
    } elsif (my $c = $conns{ shift @words }) {
        $c->event($what, \@words, $bytes);
    }
    return 1;
}

# Read on until $so is true, or the limit; what $so said last.
sub wait_until($so, $limit = Weir::LIMIT)
{
    my $until = time + $limit;
    my $answer;
    while (!($answer = $so->())) {
        pump($until) or return $so->();
    }
    return $answer;
}

# ---- a side -----------------------------------------------------------------------

sub side($class, $id)
{
    return bless { id => $id, streams => {}, datagrams => [], o => {},
        settings => undef }, $class;
}

sub options($o)
{
    return join ' ', map { "$_=$o->{$_}" } sort keys(($o // {})->%*);
}

# A connection to $o{host} (127.0.0.1) and $o{port}, once its handshake is done
# or has failed ({gone}).  %o: sni, wire => quicwire's options, bare => 1: no
# control stream, settings => { number => value }, wait => 0.
sub client($class, %o)
{
    my $self = side($class, ++$n_conns);
    $conns{ $self->{id} } = $self;
    $self->{o} = \%o;
    $self->{next} = 0;
    command(join ' ', 'dial', $self->{id}, $o{host} // '127.0.0.1', $o{port},
        $o{sni} // '-', options($o{wire}));
    wait_until(sub { $self->{up} || $self->{gone} }) if $o{wait} // 1;
    return $self;
}

# A port on which accept() gives connections.  %o: cert (of certs), wire, bare,
# settings, port.
sub listener($class, %o)
{
    my $cert = $o{cert} // Weir::certs()->{good};
    command(join ' ', 'listen', $o{port} // 0, $cert->{cert}, $cert->{key},
        options($o{wire}));
    delete $listeners{new};
    my $l = wait_until(sub { $listeners{new} }) // die "no listener\n";
    $l->{o} = \%o;
    return bless $l, 'Weir::H3::Listener';
}

sub begin($self)
{
    return if $self->{o}{bare};
    my $set = $self->{o}{settings}
        // { $SETTING{H3_DATAGRAM} => 1, $SETTING{CONNECT_PROTOCOL} => 1 };
    $self->{control} = $self->{server} ? 3 : 2; # the first of its kind
    command("open $self->{id} uni");
    $self->raw($self->{control}, "\0" . $self->settings($set));
}

sub settings($self, $set)
{
    return $self->frame('SETTINGS',
        join '', map { varint($_) . varint($set->{$_}) } sort keys %$set);
}

sub event($self, $what, $words, $bytes)
{
    my $s = $what =~ /^(?:data|reset|stopped|closed|acked)$/
        ? $self->stream($words->[0]) : undef;
    if ($what eq 'data') {
        $self->{n_in} += length $bytes;
        $s->{fin} ||= $words->[1];
        $words->[0] & 2 ? $self->uni($s, $bytes) : $self->bidi($s, $bytes);
    } elsif ($what eq 'acked') {
        $s->{acked} = $words->[1];
    } elsif ($what eq 'datagram') {
        $self->take_datagram($bytes);
    } elsif ($what eq 'reset') {
        $s->{reset} = code_name($words->[1]);
    } elsif ($what eq 'stopped') {
        $s->{stopped} = code_name($words->[1]);
    } elsif ($what eq 'closed') {
        $s->{closed} = 1;
    } elsif ($what eq 'opened') {
        $self->{opened} = $words->[0]
            if $words->[0] != ($self->{control} // -2);
    } elsif ($what eq 'up') {
        $self->{up} = 1;
        @$self{qw(version alpn resumed sni)} = @$words;
        push $self->{listener}{queue}->@*, $self if $self->{server};
        $self->begin;
    } elsif ($what eq 'gone') {
        $self->{gone} = $words->[0];
        $self->{code} = $words->[0] eq 'transport' && $words->[1] > 0x100
            ? $words->[1] : code_name($words->[1]); # RFC 9001 section 4.8
        $self->{reason} = join ' ', @$words[2 .. $#$words];
    } elsif ($what eq 'cert' || $what eq 'token') {
        $self->{$what} = $bytes;
    } else {
        $self->{$what} = $words; # path, versions, allows, dropped
        $self->{n}{$what}++;
    }
}

# ---- what comes -------------------------------------------------------------------

sub stream($self, $id)
{
    return $self->{streams}{$id} //= { id => $id, body => '', heads => [],
        frames => [], buf => '' };
}

# A unidirectional stream: settings and GOAWAY of the peer.
sub uni($self, $s, $bytes)
{
    $s->{buf} .= $bytes;
    $s->{type} //= take_varint(\$s->{buf}) // return;
    return if $s->{type} != 0;
    while (my $f = take_capsule(\$s->{buf})) { # frames are written alike
        my ($type, $value) = @$f;
        push $s->{frames}->@*, $type;
        if ($type == $TYPE{SETTINGS}) {
            $self->{settings} = {};
            while (defined(my $name = take_varint(\$value))) {
                $self->{settings}{$name} = take_varint(\$value);
            }
        } elsif ($type == $TYPE{GOAWAY}) {
            $self->{goaway} = take_varint(\$value);
        }
    }
}

# A request's: DATA is taken as it comes, other frames when they are whole.
sub bidi($self, $s, $bytes)
{
    $s->{buf} .= $bytes;
    while (length $s->{buf}) {
        if (!$s->{left}) {
            my $copy = substr $s->{buf}, 0, 16;
            my $type = take_varint(\$copy) // last;
            my $len  = take_varint(\$copy) // last;
            my $head = length(substr $s->{buf}, 0, 16) - length $copy;
            if ($type != $TYPE{DATA}) {
                last if length $s->{buf} < $head + $len;
                substr $s->{buf}, 0, $head, '';
                $self->note($s, $type, substr $s->{buf}, 0, $len, '');
                next;
            }
            substr $s->{buf}, 0, $head, '';
            push $s->{frames}->@*, $type;
            $s->{left} = $len;
            next;
        }
        my $some = substr $s->{buf}, 0, $s->{left}, '';
        $s->{left} -= length $some;
        $s->{n_body} += length $some;
        $s->{sink} ? $s->{sink}->($some) : ($s->{body} .= $some);
    }
    if ($s->{fin}) {
        $s->{end} = 1;
        $s->{torn} = 1 if $s->{left} || length $s->{buf};
    }
}

sub note($self, $s, $type, $payload)
{
    push $s->{frames}->@*, $type;
    return if $type != $TYPE{HEADERS};
    Weir::H2::take_head($self, $s, unpack_section($payload));
}

sub take_datagram($self, $bytes)
{
    my $id = take_varint(\$bytes) // return;
    push $self->{datagrams}->@*, [ $id * 4, $bytes ];
}

# ---- what is sent -----------------------------------------------------------------

sub frame($self, $type, $payload = '')
{
    return varint($TYPE{$type} // $type) . varint(length $payload) . $payload;
}

# The number of a stream that is opened now; -1: the peer lets us open none.
sub open_stream($self, $kind = 'bidi')
{
    delete $self->{opened};
    command("open $self->{id} $kind");
    wait_until(sub { defined $self->{opened} }) or die "no stream\n";
    return $self->{opened};
}

sub raw($self, $id, $bytes, $end = 0)
{
    $self->stream($id)->{put} += length $bytes;
    command(join(' ', 'send', $self->{id}, $id, $end ? 1 : 0, length $bytes),
        $bytes);
    return $id;
}

sub put($self, $id, $type, $payload = '', $end = 0)
{
    return $self->raw($id, $self->frame($type, $payload), $end);
}

# Open a stream with a request; returns its id.  %o: end => 0: content follows.
sub request($self, $fields, %o)
{
    my $id = $self->open_stream;
    return $self->put($id, 'HEADERS', qpack(@$fields), $o{end} // 1);
}

sub data($self, $id, $bytes, $end = 0)
{
    return $self->raw($id, length $bytes ? $self->frame('DATA', $bytes) : '',
        $end);
}

sub trailers($self, $id, @fields)
{
    return $self->put($id, 'HEADERS', qpack(@fields), 1);
}

sub reply($self, $id, $status, $fields = [], $body = undef, %o)
{
    $self->put($id, 'HEADERS', qpack(':status', $status, @$fields),
        !(defined $body || $o{open}));
    $self->data($id, $body, !$o{open}) if defined $body;
}

sub reset_stream($self, $id, $code)
{
    command(join ' ', 'reset', $self->{id}, $id, code_number($code));
}

sub stop_stream($self, $id, $code)
{
    command(join ' ', 'stop', $self->{id}, $id, code_number($code));
}

sub datagram($self, $id, $bytes)
{
    my $all = varint($id / 4) . $bytes;
    command(join(' ', 'datagram', $self->{id}, length $all), $all);
}

# A packet of these QUIC frames (RFC 9000 section 19), whatever they are.
sub packet($self, $frames)
{
    command("frames $self->{id} " . length $frames, $frames);
}

# Wait until at most $max bytes of what was put are not acknowledged.
sub drained($self, $id, $max = 0)
{
    my $s = $self->stream($id);
    return $self->until(sub { $s->{put} - ($s->{acked} // 0) <= $max });
}

# hold, resume (a stream); migrate, rebind, update, abandon; lossy, keepalive
sub tell($self, $what, @args)
{
    command(join ' ', $what, $self->{id}, @args);
    delete $conns{ $self->{id} } if $what eq 'abandon';
}

sub close($self, $code = 'NO_ERROR')
{
    command(join ' ', 'close', $self->{id}, code_number($code));
    delete $conns{ $self->{id} };
}

# ---- waiting ----------------------------------------------------------------------

# Read on until $so is true, or the connection has gone; what $so said last.
sub until($self, $so)
{
    return wait_until(sub { $so->() || $self->{gone} }) && $so->();
}

# The answer on a stream, to its end or reset: the stream.
sub answer($self, $id)
{
    my $s = $self->stream($id);
    $self->until(sub { $s->{end} || $s->{reset} });
    return $s;
}

# As a server: the next stream on which a request's head has come.
sub next_request($self)
{
    my $s;
    $self->until(sub {
        ($s) = grep { !($_->{id} & 2) && !$_->{seen} && $_->{heads}->@* }
            sort { $a->{id} <=> $b->{id} } values $self->{streams}->%*;
        return defined $s;
    });
    $s->{seen} = 1 if $s;
    return $s;
}

# How the connection ended: "kind CODE".
sub ending($self)
{
    wait_until(sub { $self->{gone} });
    return join ' ', $self->{gone} // 'never', $self->{code} // '';
}

# Wait for the peer's SETTINGS.
sub settled($self)
{
    return $self->until(sub { $self->{settings} });
}

package Weir::H3::Listener;
use v5.36;

sub port($self) { $self->{port} }
sub addr($self) { "127.0.0.1:$self->{port}" }

# The next connection whose handshake is done.
sub accept($self)
{
    return Weir::H3::wait_until(sub { $self->{queue}->@* })
        ? shift $self->{queue}->@* : die "nobody came\n";
}

sub waiting($self)
{
    1 while Weir::H3::pump(0);
    return scalar $self->{queue}->@*;
}

1;
