# Sides.pm - a client and an origin of each HTTP version, used alike.
#
#   client_of($version, $weir)   ->ask gives an exchange, as do ->websocket and
#                                ->connect
#   origin_of($version)          ->request gives the next that came; {scheme} and
#                                {authority} are how to ask for it
#
# An exchange, on either side, in the order of events:
#
#   ->head               the next head that comes: { status or method, path,
#                        authority, fields }; undef: none will
#   ->more($n)           its content, at least $n bytes unless it has ended
#   ->finish             all of it: { body, trailers, whole }
#   ->answer($status, \@fields, end)   (origins; end => 1: without content)
#   ->data($bytes), ->trailers(@fields), ->end
#   ->cut                end the message as what is not whole
#   ->unwanted           (origins) after an answer: let no more content come
#   ->stopped            (clients) wait to be told so; is it without an error?
#   ->gone               wait until the peer has given it up
#
# Field lists are name, value, name, value.  The test is client and origin in
# one, so large contents go step by step; windows are seen to here.

package Sides;
use v5.36;
use Digest::SHA qw(sha1_base64);
use Exporter 'import';
use Weir;
use Weir::H2;
use Weir::H3;

our @EXPORT = qw(client_of origin_of sides_conf);

use constant WINDOW => 4 << 20;

# What weir has to be told so that origin_of() is spoken to in its version.
sub sides_conf(@versions)
{
    return ('upstream.h2c=two.good.test',
        (grep({ $_ == 3 } @versions) ? 'upstream.http3=three.good.test' : ()),
        "upstream.upstream_ca=" . Weir::certs()->{ca}{cert},
        map { "resolve.$_.good.test=127.0.0.1" } qw(one two three));
}

sub client_of($version, $w)
{
    return "Sides::Client$version"->new($w);
}

sub origin_of($version)
{
    return "Sides::Origin$version"->new;
}

sub websocket_key() { 'dGhlIHNhbXBsZSBub25jZQ==' }

sub websocket_accept($key)
{
    return sha1_base64($key . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';
}

# ---- HTTP/1.1 -----------------------------------------------------------------------

package Sides::One; # an exchange
use v5.36;

sub lines(@fields)
{
    my $out = '';
    while (my ($name, $value) = splice @fields, 0, 2) {
        $out .= "$name: $value\r\n";
    }
    return $out;
}

# How the content that follows is framed here.
sub framing($self, $fields, $end)
{
    my %has = map { lc $_ => 1 } @$fields[ grep { !($_ & 1) } 0 .. $#$fields ];
    $self->{chunked} = !$end && !$has{'content-length'};
    return $self->{chunked} ? "Transfer-Encoding: chunked\r\n" : '';
}

sub head($self)
{
    my $wire = $self->{wire};
    my $raw  = $wire->get_until(qr/\r\n\r\n/);
    return undef if $raw !~ /\r\n\r\n\z/;
    my $r = Weir::Wire::parse_head($raw);
    my $value = sub ($name) {
        return join ', ', map { $_->[1] }
            grep { lc $_->[0] eq $name } $r->{fields}->@*;
    };
    my %head = (fields => $r->{fields});
    if ($r->{first} =~ m{^HTTP/1\.1 (\d+)}) {
        $head{status} = $1;
    } else {
        ($head{method}, $head{path}) = split / /, $r->{first};
        $head{authority} = $value->('host');
    }
    return \%head if ($head{status} // 200) =~ /^1/ && $head{status} != 101;
    $self->{reads} = $value->('transfer-encoding') =~ /chunked/ ? 'chunked'
        : ($head{status} // 0) == 101 || $self->{tunnel}        ? 'raw'
        : $self->{is_head} || ($head{status} // 0) =~ /^[23]04$/ ? 'none'
        : length $value->('content-length')                     ? 'length'
        : $head{status}                                         ? 'raw' : 'none';
    $self->{left} = $value->('content-length') || 0;
    $self->{whole} = 1
        if $self->{reads} eq 'none' || ($self->{reads} eq 'length' && !$self->{left});
    return \%head;
}

# At most $max bytes, at least one; '': the end.
sub some($self, $max)
{
    my $wire = $self->{wire};
    $wire->fill if $wire->{ahead} eq '';
    my $have = length $wire->{ahead};
    return $wire->take($have < $max ? $have : $max);
}

# One read of the content; false: it is over, or cut.
sub step($self)
{
    return 0 if $self->{whole} || $self->{over};
    my $some = $self->{reads} eq 'raw' ? $self->some(1 << 20)
        : $self->{left}                ? $self->some($self->{left}) : undef;
    if (defined $some) {
        $self->{body} .= $some;
        $self->{left} -= length $some if $self->{reads} ne 'raw';
        $self->{over}  = 1 if $some eq '';
        $self->{whole} = 1 if $some eq '' && $self->{reads} eq 'raw'
            && $self->{wire}->how eq 'eof';
        $self->{whole} = 1 if $self->{reads} eq 'length' && !$self->{left};
        return 1;
    }
    my $line = $self->{wire}->get_until(qr/\r\n/);
    return !($self->{over} = 1) if $line !~ /\r\n\z/;
    return 1 if $line eq "\r\n"; # after a chunk
    $self->{left} = hex $line =~ s/[^0-9a-fA-F].*//sr;
    $self->trailer_section if !$self->{left};
    return 1;
}

sub trailer_section($self)
{
    my $raw = '';
    while (1) {
        my $line = $self->{wire}->get_until(qr/\r\n/);
        return $self->{over} = 1 if $line !~ /\r\n\z/;
        last if $line eq "\r\n";
        $raw .= $line;
    }
    $self->{whole} = 1;
    $self->{trailers} = Weir::Wire::parse_head("x\r\n$raw")->{fields}
        if $raw ne '';
}

sub more($self, $n)
{
    1 while length $self->{body} < $n && $self->step;
    return $self->{body};
}

sub finish($self)
{
    1 while $self->step;
    return { body => $self->{body}, trailers => $self->{trailers},
        whole => $self->{whole} ? 1 : 0 };
}

sub answer($self, $status, $fields = [], %o)
{
    my $frame = $status < 200 || $self->{is_head} || $status =~ /^[23]04$/ ? ''
        : $self->framing($fields, $o{end});
    $frame = "Content-Length: 0\r\n" if $o{end} && $status >= 200
        && !$self->{is_head} && $status !~ /^[23]04$/;
    $self->{wire}->put("HTTP/1.1 $status X\r\n" . lines(@$fields)
        . "$frame\r\n");
}

sub data($self, $bytes)
{
    return $self->{wire}->put($self->{chunked}
        ? sprintf("%x\r\n%s\r\n", length $bytes, $bytes) : $bytes);
}

sub end($self)
{
    $self->{wire}->put("0\r\n\r\n") if $self->{chunked};
    $self->{wire}->shut if $self->{tunnel};
}

sub trailers($self, @fields)
{
    $self->{wire}->put("0\r\n" . lines(@fields) . "\r\n");
}

sub cut($self)
{
    $self->{is_origin} ? $self->{wire}->close : $self->{wire}->reset;
}

# As an origin: an answer was given, and the rest of the content has no use.
sub unwanted($self) { $self->{wire}->close }

sub gone($self)
{
    $self->{wire}->get_eof;
    return 1;
}

sub stopped($self) { return $self->gone } # there is no gentler word for it

sub accept_websocket($self)
{
    $self->{reads} = 'raw';
    delete $self->{whole};
    $self->{tunnel} = 1;
    $self->{wire}->put("HTTP/1.1 101 Switching Protocols\r\n"
        . "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        . 'Sec-WebSocket-Accept: '
        . Sides::websocket_accept($self->{key} // '') . "\r\n\r\n");
}

package Sides::Client1;
use v5.36;

sub new($class, $w) { return bless { w => $w }, $class }

sub exchange($self, $method, $target, $fields, $frame)
{
    my $x = bless { wire => $self->{w}->client, body => '',
        is_head => $method eq 'HEAD' }, 'Sides::One';
    $x->{wire}->put("$method $target HTTP/1.1\r\n" . $frame->($x)
        . Sides::One::lines(@$fields) . "\r\n");
    return $x;
}

sub ask($self, $method, $o, $path, $fields = [], %o)
{
    my @fields = @$fields;
    push @fields, 'connection', 'te' if grep { $_ eq 'te' } @fields;
    return $self->exchange($method, "$o->{scheme}://$o->{authority}$path",
        [ 'host', $o->{authority}, @fields ],
        sub ($x) { $x->framing($fields, $o{end} // 1) });
}

sub connect($self, $authority)
{
    my $x = $self->exchange('CONNECT', $authority, [ 'host', $authority ],
        sub ($x) { '' });
    $x->{tunnel} = 1;
    return $x;
}

sub websocket($self, $o, $path)
{
    my $x = $self->exchange('GET', "$o->{scheme}://$o->{authority}$path",
        [ 'host', $o->{authority}, 'connection', 'upgrade', 'upgrade',
            'websocket', 'sec-websocket-version', 13, 'sec-websocket-key',
            Sides::websocket_key() ], sub ($x) { '' });
    $x->{is_websocket} = 1;
    return $x;
}

# Its status, 200 meaning that the stream is the other side's now.
sub websocket_head($self, $x)
{
    my $head = $x->head // return 0;
    return $head->{status} if $head->{status} != 101;
    $x->{tunnel} = 1;
    return grep({ lc $_->[0] eq 'sec-websocket-accept'
            && $_->[1] eq Sides::websocket_accept(Sides::websocket_key) } $head->{fields}->@*)
        ? 200 : 101;
}

package Sides::Origin1;
use v5.36;

sub new($class)
{
    my $l = Weir::listener();
    return bless { l => $l, open => [], scheme => 'http',
        authority => "one.good.test:$l->{port}" }, $class;
}

sub request($self)
{
    while (1) {
        $self->{open} = [ grep { $_->{sock} } $self->{open}->@* ];
        my $one = Weir::first_of($self->{l}, $self->{open}->@*);
        if ($one == $self->{l}) {
            push $self->{open}->@*, $self->{l}->accept;
            next;
        }
        my $x = bless { wire => $one, body => '' }, 'Sides::One';
        my $head = $x->head;
        if (!$head) {
            $one->close;
            next;
        }
        $x->{is_head} = $head->{method} eq 'HEAD';
        $x->{is_origin} = 1;
        $x->{key} = Weir::field($head, 'sec-websocket-key');
        @$x{ keys %$head } = values %$head;
        return $x;
    }
}

# ---- HTTP/2 and HTTP/3: streams -----------------------------------------------------

package Sides::Stream; # an exchange; {c}: Weir::H2 or Weir::H3
use v5.36;

sub new($class, $c, $s)
{
    return bless { c => $c, s => $s, n => 0 }, $class;
}

sub two($self) { return $self->{c}->isa('Weir::H2') }

sub over($self)
{
    return $self->{s}{end} || $self->{s}{reset} || $self->{c}{gone};
}

sub head($self)
{
    my $s = $self->{s};
    $self->{c}->until(sub { $s->{heads}->@* > $self->{n} || $self->over });
    my $h = $s->{heads}[ $self->{n}++ ] // return undef;
    return { status => $h->{':status'}, fields => $h->{fields} };
}

sub more($self, $n)
{
    my $s = $self->{s};
    $self->{c}->until(sub { length $s->{body} >= $n || $self->over });
    return $s->{body};
}

sub finish($self)
{
    my $s = $self->{s};
    $self->{c}->until(sub { $self->over });
    return { body => $s->{body}, trailers => $s->{trailers},
        whole => $s->{end} && !$s->{torn} ? 1 : 0, reset => $s->{reset} };
}

sub fields_out($self, $fields, $end)
{
    my ($c, $id) = ($self->{c}, $self->{s}{id});
    return $c->put($id, 'HEADERS', Weir::H3::qpack(@$fields), $end)
        if !$self->two;
    $c->put('HEADERS', 4 | ($end ? 1 : 0), $id, Weir::H2::hpack(@$fields));
}

sub answer($self, $status, $fields = [], %o)
{
    $self->fields_out([ ':status', $status, @$fields ], $o{end});
}

sub data($self, $bytes)
{
    my ($c, $id) = ($self->{c}, $self->{s}{id});
    return $c->data($id, $bytes) if !$self->two;
    while (length $bytes) {
        my $piece = substr $bytes, 0, 16384, '';
        $c->until(sub {
            return $self->over || ($c->window(0) >= length $piece
                && $c->window($id) >= length $piece);
        });
        return if $self->{s}{reset};
        $c->data($id, $piece);
        $c->{used}{$_} += length $piece for 0, $id;
    }
}

sub end($self)             { $self->{c}->data($self->{s}{id}, '', 1) }
sub trailers($self, @list) { $self->fields_out(\@list, 1) }

sub cut($self)
{
    my ($c, $id) = ($self->{c}, $self->{s}{id});
    my $code = $c->{server} ? 'INTERNAL_ERROR'
        : $self->two ? 'CANCEL' : 'REQUEST_CANCELLED';
    if ($self->two) {
        my ($n) = grep { $Weir::H2::CODE[$_] eq $code } 0 .. $#Weir::H2::CODE;
        return $c->put('RST_STREAM', 0, $id, pack 'N', $n);
    }
    $c->reset_stream($id, $code);
    $c->stop_stream($id, $code);
}

sub unwanted($self)
{
    my ($c, $id) = ($self->{c}, $self->{s}{id});
    $self->two ? $c->put('RST_STREAM', 0, $id, pack 'N', 0)
        : $c->stop_stream($id, 'NO_ERROR');
}

sub gone($self)
{
    my $s = $self->{s};
    return $self->{c}->until(sub { $s->{reset} || $s->{stopped} });
}

# Told, without blame, that what we send is not wanted?
sub stopped($self)
{
    my $s = $self->{s};
    my $key = $self->two ? 'reset' : 'stopped';
    $self->{c}->until(sub { $s->{$key} });
    return ($s->{$key} // '') eq 'NO_ERROR';
}

sub accept_websocket($self) { $self->answer(200) }

package Sides::Streams; # a client of such
use v5.36;

sub head_of($method, $o, $path)
{
    return (':method', $method, ':scheme', $o->{scheme}, ':authority',
        $o->{authority}, ':path', $path);
}

sub exchange($self, $fields, $end)
{
    my $c = $self->{c};
    return Sides::Stream->new($c,
        $c->stream($c->request($fields, end => $end)));
}

sub ask($self, $method, $o, $path, $fields = [], %o)
{
    return $self->exchange([ head_of($method, $o, $path), @$fields ],
        $o{end} // 1);
}

sub connect($self, $authority)
{
    return $self->exchange([ ':method', 'CONNECT', ':authority', $authority ],
        0);
}

sub websocket($self, $o, $path)
{
    return $self->exchange([ head_of('CONNECT', $o, $path), ':protocol',
        'websocket', 'sec-websocket-version', 13 ], 0);
}

sub websocket_head($self, $x)
{
    my $head = $x->head // return 0;
    return $head->{status};
}

package Sides::Client2;
use v5.36;
use parent -norequire, 'Sides::Streams';

sub new($class, $w)
{
    my $c = Weir::H2->client($w->client,
        settings => Weir::H2::setting(4, Sides::WINDOW));
    $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 16 * Sides::WINDOW);
    return bless { c => $c }, $class;
}

package Sides::Client3;
use v5.36;
use parent -norequire, 'Sides::Streams';

sub new($class, $w)
{
    my $c = Weir::H3->client(port => $w->port, sni => 'localhost',
        wire => { ca => $w->ca });
    die "no HTTP/3: $c->{reason}\n" if !$c->{up};
    return bless { c => $c }, $class;
}

package Sides::StreamsOrigin;
use v5.36;

sub exchange($self, $c, $s)
{
    my $x = Sides::Stream->new($c, $s);
    my $h = $s->{head};
    $x->{$_} = $h->{":$_"} for qw(method path authority scheme protocol);
    $x->{fields} = $h->{fields};
    return $x;
}

package Sides::Origin2;
use v5.36;
use parent -norequire, 'Sides::StreamsOrigin';

sub new($class)
{
    my $l = Weir::listener();
    return bless { l => $l, open => [], scheme => 'http',
        authority => "two.good.test:$l->{port}" }, $class;
}

sub request($self)
{
    while (1) {
        for my $c ($self->{open}->@*) {
            my ($s) = grep { !$_->{seen} && $_->{heads}->@* }
                values $c->{streams}->%*;
            next if !$s;
            $s->{seen} = 1;
            return $self->exchange($c, $s);
        }
        my $one = Weir::first_of($self->{l}, map { $_->{wire} } $self->{open}->@*);
        if ($one == $self->{l}) {
            my $c = Weir::H2->server($self->{l}->accept, settings =>
                Weir::H2::setting(4, Sides::WINDOW, 8, 1));
            $c->{server} = 1;
            $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 16 * Sides::WINDOW);
            push $self->{open}->@*, $c;
            next;
        }
        my ($c) = grep { $_->{wire} == $one } $self->{open}->@*;
        $self->{open} = [ grep { $_ != $c } $self->{open}->@* ]
            if !$c->get_frame;
    }
}

package Sides::Origin3;
use v5.36;
use parent -norequire, 'Sides::StreamsOrigin';

sub new($class)
{
    my $l = Weir::H3->listener;
    return bless { l => $l, open => [], scheme => 'https',
        authority => "three.good.test:$l->{port}" }, $class;
}

sub request($self)
{
    my ($c, $s);
    my $found = Weir::H3::wait_until(sub {
        push $self->{open}->@*, splice $self->{l}{queue}->@*;
        for $c ($self->{open}->@*) {
            ($s) = grep { !($_->{id} & 2) && !$_->{seen} && $_->{heads}->@* }
                values $c->{streams}->%*;
            return $s->{seen} = 1 if $s;
        }
        return 0;
    });
    die "no request came\n" if !$found;
    my ($of) = grep { ($_->{streams}{ $s->{id} } // 0) == $s } $self->{open}->@*;
    return $self->exchange($of, $s);
}

1;
