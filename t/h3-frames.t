#!/usr/bin/perl
# What RFC 9114, RFC 9204 and RFC 9297 forbid, section by section: as a client
# does it, and as an origin does.  After a stream error the connection goes on;
# after any, weir does.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H3;

my $w = Weir->start(set => [ 'upstream.http3=*.good.test',
    map({ "resolve.o$_.good.test=127.0.0.1" } 1 .. 30), 'proxy.via=tester',
    'upstream.upstream_ca=' . certs()->{ca}{cert} ], args => ['-v']);

sub client(%o)
{
    return Weir::H3->client(port => $w->port, sni => 'localhost',
        wire => { ca => $w->ca }, %o);
}

my $l = listener(); # an HTTP/1 origin

sub get(@more) { return (Weir::H2::get($l->addr), @more) }

sub varint($n) { return Weir::H3::varint($n) }

sub frame($type, $payload = '')
{
    return Weir::H3->frame($type, $payload);
}

sub head(@fields) { return frame('HEADERS', Weir::H3::qpack(@fields)) }

# Is weir there, on this connection?
sub alive($c)
{
    my $other = listener();
    my $id = $c->request([ Weir::H2::get($other->addr) ]);
    my $o = $other->accept;
    $o->get_request;
    $o->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    $o->close;
    return $c->answer($id)->{body} eq 'ok';
}

# ---- section 4.1.2: malformed requests --------------------------------------------

my @pseudo = get();
for my $case (
    ['4.2 a name in upper case', [ get('X-One', 1) ]],
    ['4.2 a connection field', [ get('connection', 'close') ]],
    ['4.2 transfer-encoding', [ get('transfer-encoding', 'chunked') ]],
    ['4.2 TE of another kind', [ get('te', 'gzip') ]],
    ['4.3 an unknown pseudo-field', [ get(':odd', 1) ]],
    ['4.3 a pseudo-field of answers', [ get(':status', 200) ]],
    ['4.3 a pseudo-field behind others', [ @pseudo[0 .. 5], 'x', 1, @pseudo[6, 7] ]],
    ['4.3.1 no method', [ @pseudo[2 .. 7] ]],
    ['4.3.1 no scheme', [ @pseudo[0, 1, 4 .. 7] ]],
    ['4.3.1 no path', [ @pseudo[0 .. 5] ]],
    ['4.3.1 an empty path', [ @pseudo[0 .. 6], '' ]],
    ['4.3.1 two methods', [ ':method', 'GET', @pseudo ]],
    ['4.3.1 no authority at all', [ @pseudo[0 .. 3, 6, 7] ]],
    ['4.3.1 authority and Host differ', [ get('host', 'elsewhere.test') ]],
    ['4.3.1 user information', [ @pseudo[0 .. 3], ':authority', 'me@' . $l->addr, @pseudo[6, 7] ]],
    ['4.4 CONNECT with a path', [ ':method', 'CONNECT', ':authority', $l->addr, ':path', '/' ]],
    ['4.4 CONNECT without authority', [ ':method', 'CONNECT' ]],
    ['9220 :protocol without CONNECT', [ get(':protocol', 'websocket') ]],
    ['4.1.2 two lengths', [ get('content-length', 1, 'content-length', 2) ], 'x'],
    ['4.3 a pseudo-field in trailers', [ get() ], 'abc', [ ':path', '/' ]],
    ['4.3 a name in upper case in trailers', [ get() ], 'abc', [ 'X-One', 1 ]],
) {
    my ($what, $fields, $content, $trailers) = @$case;
    my $c = client();
    my $id = $c->request($fields, end => !defined $content);
    $c->data($id, $content, !$trailers) if defined $content;
    $c->trailers($id, @$trailers) if $trailers;
    my $s = $c->answer($id);
    my $told = ($s->{reset} // '') eq 'MESSAGE_ERROR' || ($s->{status} // 0) == 400
        || (defined $content && ($s->{status} // 0) == 502);
    ok $told, $what or diag explain $s, $c->{gone};
    $l->accept->close while $l->waiting;
    ok alive($c), '  only the stream is over';
    $c->close;
}
# These the library takes for errors of the connection, as section 8 allows.
for my $case (
    ['more than its length', 2],
    ['more than none', 0],
    ['less than its length', 9],
) {
    my ($what, $n) = @$case;
    my $c = client();
    my $id = $c->request([ get('content-length', $n) ], end => 0);
    $c->data($id, 'abc', 1);
    my $s = $c->answer($id);
    is $s->{reset} // $c->{code}, 'MESSAGE_ERROR', "4.1.2 content: $what";
    $l->accept->close while $l->waiting;
}
# Fields that are none are dropped by the library before anybody sees them.
for my $case (
    ['a line break in a value', 'x-one', "a\r\nb: c"],
    ['NUL in a value', 'x-one', "a\0b"],
    ['a space in a name', 'x one', 1],
    ['a colon in a name', 'x:one', 1],
    ['an empty name', '', 1],
) {
    my ($what, @field) = @$case;
    my $c = client();
    my $other = listener();
    $c->request([ Weir::H2::get($other->addr), @field, 'x-last', 1 ]);
    my $head = $other->accept->get_head;
    is join(' ', $head =~ /^(\S+):/mg), 'Host x-last Via',
        "10.3 $what is not passed on" or diag $head;
}
for my $case (
    ['no frame at all', ''],
    ['an unknown frame alone', frame(0x21, 'grease')],
) {
    my $c = client();
    my $id = $c->open_stream;
    $c->raw($id, $case->[1], 1);
    like $c->answer($id)->{reset} // $c->{code},
        qr/^(?:REQUEST_INCOMPLETE|FRAME_UNEXPECTED)$/, "4.1 $case->[0]";
}

# ---- what breaks the connection ------------------------------------------------------

# Frames on a request's stream.
for my $case (
    ['4.1 DATA first', frame('DATA', 'x'), 'FRAME_UNEXPECTED'],
    ['4.1 HEADERS behind trailers', head(get()) . head('x', 1) . head('x', 1), 'FRAME_UNEXPECTED'],
    ['4.1 DATA behind trailers', head(get()) . head('x', 1) . frame('DATA', 'x'), 'FRAME_UNEXPECTED'],
    ['7.2.4 SETTINGS on a request', head(get()) . frame('SETTINGS'), 'FRAME_UNEXPECTED'],
    ['7.2.6 GOAWAY on a request', head(get()) . frame('GOAWAY', "\0"), 'FRAME_UNEXPECTED'],
    ['7.2.3 CANCEL_PUSH on a request', head(get()) . frame('CANCEL_PUSH', "\0"), 'FRAME_UNEXPECTED'],
    ['7.2.7 MAX_PUSH_ID on a request', head(get()) . frame('MAX_PUSH_ID', "\0"), 'FRAME_UNEXPECTED'],
    ['7.2.5 PUSH_PROMISE of a client', head(get()) . frame('PUSH_PROMISE', "\0\0\0"), 'FRAME_UNEXPECTED'],
    (map { [ "7.2.8 HTTP/2's frame $_", head(get()) . frame($_, 'x'), 'FRAME_UNEXPECTED' ] } 2, 6, 8, 9),
    ['7.1 a frame that is cut', head(get()) . varint(0) . varint(9) . 'abc', 'FRAME_ERROR', 1],
    ['7.1 a section that is cut', varint(1) . varint(99) . "\0\0\xd1", 'FRAME_ERROR', 1],
    ['9204 4.5.1 a count beyond the table', frame('HEADERS', "\xff\xff\x7f\0\x80"), 'QPACK_DECOMPRESSION_FAILED'],
    ['9204 3.1 no such static entry', frame('HEADERS', "\0\0\xff\x60"), 'QPACK_DECOMPRESSION_FAILED'],
    ['9204 4.1.1 an integer without end', frame('HEADERS', "\0\0" . "\xff" x 20), 'QPACK_DECOMPRESSION_FAILED'],
    ['9204 4.1.2 a string that is cut', frame('HEADERS', "\0\0\x23abc\x7fa"), 'QPACK_DECOMPRESSION_FAILED'],
) {
    my ($what, $bytes, $code, $end) = @$case;
    my $c = client();
    my $id = $c->open_stream;
    $c->raw($id, $bytes, $end // 0);
    is $c->ending, "application $code", $what or diag explain $c->stream($id), $w->log;
    $l->accept->close while $l->waiting;
}

# Unidirectional streams.
my $settings = "\0" . frame('SETTINGS');
for my $case (
    ['6.2.1 a control stream without SETTINGS', [ "\0" . frame('MAX_PUSH_ID', "\0") ], 'MISSING_SETTINGS'],
    ['6.2.1 a second control stream', [ $settings, $settings ], 'STREAM_CREATION_ERROR'],
    ['6.2.1 a control stream that ends', [ $settings, 'end' ], 'CLOSED_CRITICAL_STREAM'],
    ['6.2.1 a control stream that is reset', [ $settings, 'reset' ], 'CLOSED_CRITICAL_STREAM'],
    ['6.2.2 a push stream of a client', [ $settings, "\1\0" ], 'STREAM_CREATION_ERROR'],
    ['7.2.4 SETTINGS twice', [ $settings . frame('SETTINGS') ], 'FRAME_UNEXPECTED'],
    (map { [ "7.2.4.1 HTTP/2's setting $_", [ "\0" . frame('SETTINGS', chr($_) . "\0") ], 'SETTINGS_ERROR' ] } 2 .. 5),
    ['7.2.4 SETTINGS that are cut', [ "\0" . frame('SETTINGS', "\x06") ], 'FRAME_ERROR'],
    ['9220 3 CONNECT_PROTOCOL is 2', [ "\0" . frame('SETTINGS', "\x08\x02") ], 'SETTINGS_ERROR'],
    ['9297 2.1.1 H3_DATAGRAM is 2', [ "\0" . frame('SETTINGS', "\x33\x02") ], 'SETTINGS_ERROR'],
    ['7.2.1 DATA on the control stream', [ $settings . frame('DATA', 'x') ], 'FRAME_UNEXPECTED'],
    ['7.2.2 HEADERS on the control stream', [ $settings . frame('HEADERS', 'x') ], 'FRAME_UNEXPECTED'],
    ['7.2.7 MAX_PUSH_ID that goes back', [ $settings . frame('MAX_PUSH_ID', "\2") . frame('MAX_PUSH_ID', "\1") ], 'ID_ERROR|FRAME_ERROR'],
    ['7.2.6 GOAWAY that goes up', [ $settings . frame('GOAWAY', "\0") . frame('GOAWAY', "\4") ], 'ID_ERROR'],
    ["7.2.8 HTTP/2's frame on the control stream", [ $settings . frame(6, 'x') ], 'FRAME_UNEXPECTED'],
    ['9204 4.2 two encoder streams', [ "\2", "\2" ], 'STREAM_CREATION_ERROR'],
    ['9204 4.2 two decoder streams', [ "\3", "\3" ], 'STREAM_CREATION_ERROR'],
    ['9204 4.2 an encoder stream that ends', [ $settings, "\2", 'end' ], 'CLOSED_CRITICAL_STREAM'],
    ['9204 4.3.1 a table larger than allowed', [ "\2\x3f\xe1\xff\x03" ], 'QPACK_ENCODER_STREAM_ERROR'],
    ['9204 4.3.4 an entry that is not there', [ "\2\x05" ], 'QPACK_ENCODER_STREAM_ERROR'],
    ['9204 4.4.3 an increment of 0', [ "\3\0" ], 'QPACK_DECODER_STREAM_ERROR'],
    ['9204 4.4.1 a section nobody knows', [ "\3\x84" ], 'QPACK_DECODER_STREAM_ERROR'],
) {
    my ($what, $streams, $code) = @$case;
    my $c = client(bare => 1);
    my $id;
    for (@$streams) {
        $c->drained($id) if /^(end|reset)$/;
        if ($_ eq 'end') {
            $c->raw($id, '', 1);
        } elsif ($_ eq 'reset') {
            $c->reset_stream($id, 'NO_ERROR');
        } else {
            $id = $c->open_stream('uni');
            $c->raw($id, $_);
        }
    }
    like $c->ending, qr/^application (?:$code)$/, $what;
}
{
    my $c = client();
    $c->settled;
    $c->datagram(400, '');
    my $got = alive($c);
    ok $got || $c->ending eq 'application ID_ERROR',
        '9297 2.1 a datagram for a stream that is not open yet';
    $c = client();
    Weir::H3::command("datagram $c->{id} 1", "\x40");
    is $c->ending, 'application DATAGRAM_ERROR', '9297 2.1 a datagram of nothing';
}

# ---- what has to be ignored ------------------------------------------------------------

{
    my $c = client(bare => 1);
    my $grease = frame(0x21, 'grease') . frame(0x21 + 31 * 1000, '');
    my $control = $c->open_stream('uni');
    $c->raw($control, "\0" . frame('SETTINGS', varint(0x21) . varint(7)
                . varint(0x4242) . varint(9)) . $grease);
    my $odd = $c->open_stream('uni');
    $c->raw($odd, varint(0x21) . 'an unknown kind of stream');
    my $id = $c->open_stream;
    $c->raw($id, $grease . head(get('x-one', 1)) . $grease, 1);
    my $o = $l->accept;
    is field($o->get_request, 'x-one'), 1, '9 frames, settings and streams of '
        . 'unknown types are passed over';
    $o->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    is $c->answer($id)->{body}, 'ok', '  with an answer';
    ok alive($c), '  and on';
    is $c->{settings}{8}, 1, 'extended CONNECT is offered';
    is $c->{settings}{0x33}, 1, 'datagrams are';
}
{ # byte by byte
    my $c = client();
    my $id = $c->open_stream;
    my @bytes = split //, head(get('x-one', 'bytes')) . frame('DATA', 'content');
    while (defined(my $byte = shift @bytes)) {
        $c->raw($id, $byte, !@bytes);
        $c->drained($id);
    }
    my $o = $l->accept;
    my $seen = $o->get_request;
    is field($seen, 'x-one') . $seen->{body}, 'bytescontent', 'byte by byte';
    $o->put("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    is $c->answer($id)->{body}, 'ok', '  it is answered';
}
# The control stream in pieces, each in a packet of its own: where one ends is
# up to the client (RFC 9218 section 7.2).
{
    my $update = varint(0xf0700) . varint(4) . "\0u=1";
    my $long   = varint(0xf0700) . varint(60) . "\0" . 'u=1,' x 14 . 'i=1';
    for my $case (
        (map { ["PRIORITY_UPDATE, cut behind $_",
            substr($update, 0, $_), substr($update, $_)] } 1 .. 8),
        ['PRIORITY_UPDATE byte by byte, twice', split //, $update x 2],
        ['a long one', $long . substr($update, 0, 6), substr($update, 6)],
        ['a long one in pieces', substr($long, 0, 9), substr($long, 9) . $update],
        ['unknown frames in pieces', "\x21\3a", 'bc' . substr($update, 0, 6),
            substr($update, 6) . "\x21", "\0"],
    ) {
        my ($what, @pieces) = @$case;
        my $c = client(bare => 1);
        my $id = $c->open_stream('uni');
        # Its type and its frames may be written in more bytes than needed.
        for my $piece ("\x40", "\0", frame('SETTINGS'), @pieces) {
            $c->raw($id, $piece);
            $c->drained($id);
        }
        ok alive($c), $what or diag $c->{code};
        $c->close;
    }
    my $c = client();
    $c->raw($c->{control}, substr($update, 0, 6), 1);
    like $c->ending, qr/^application (?:FRAME_ERROR|CLOSED_CRITICAL_STREAM)$/,
        'the control stream ends in the middle of one';
}
# Sections that are too large: the rest of the connection goes on, unless it is
# a multiple of what is allowed, or one string more than the library holds.
for my $case (
    ['of 100 KB', [ map { ("x-$_", 'y' x 20_000) } 1 .. 5 ], 1],
    ['of 1000 fields', [ map { ('x-many', $_) } 1 .. 1000 ], 1],
    ['of 5000 fields', [ map { ('x-many', $_) } 1 .. 5000 ], 0],
    ['one string of 70 KB', [ 'x-large', 'y' x 70_000 ], 0],
    ['one string of 200 KB', [ 'x-large', 'y' x 200_000 ], 0],
    ['one name of 70 KB', [ 'x' x 70_000, 'y' ], 0],
) {
    my ($what, $fields, $goes_on) = @$case;
    my $c = client();
    my $id = $c->request([ get(@$fields) ]);
    my $s = $c->answer($id);
    if ($goes_on) {
        is $s->{status}, 431, "4.2.2 a section too large: $what";
        ok alive($c), '  the connection goes on';
    } else {
        is $c->ending, 'application EXCESSIVE_LOAD',
            "4.2.2 a section too large: $what";
    }
}

# ---- the same of an origin ---------------------------------------------------------------

my $origin = Weir::H3->listener;
my $nth = 0; # what fails is not asked in HTTP/3 again for a while

sub ask()
{
    my $c = $w->client;
    my $host = 'o' . ++$nth . '.good.test:' . $origin->port;
    $c->put(request('GET', "https://$host/"));
    return $c;
}

sub served()
{
    my $s = $origin->accept;
    return ($s, $s->next_request->{id});
}

for my $case (
    ['4.3.2 no status', [ 'x-one', 1 ]],
    ['4.3.2 a status of letters', [ ':status', 'abc' ]],
    ['4.3.2 status 101', [ ':status', 101 ]],
    ['4.3 a request\'s pseudo-field', [ ':status', 200, ':path', '/' ]],
    ['4.2 a name in upper case', [ ':status', 200, 'X-One', 1 ]],
    ['4.2 a connection field', [ ':status', 200, 'connection', 'close' ]],
    ['4.1.2 two lengths', [ ':status', 200, 'content-length', 1, 'content-length', 2 ]],
) {
    my $c = ask();
    my ($s, $id) = served();
    $s->put($id, 'HEADERS', Weir::H3::qpack($case->[1]->@*), 1);
    is $c->get_answer->{status}, 502, "an origin: $case->[0]";
}
for my $case (
    ['4.1.2 more content than its length', 2, 'abc'],
    ['4.1.2 less content than its length', 9, 'abc'],
) {
    my $c = ask();
    my ($s, $id) = served();
    $s->reply($id, 200, [ 'content-length', $case->[1] ], $case->[2]);
    my $got = $c->get_answer;
    ok $got->{status} == 502 || !$got->{complete}
        || $c->get_eof . $c->how eq 'reset', "an origin: $case->[0]"
        or diag explain $got;
}
for my $case (
    ['4.1 DATA first', frame('DATA', 'x'), 'FRAME_UNEXPECTED'],
    ['4.1 only an interim answer', head(':status', 103), 'MESSAGE_ERROR|REQUEST_INCOMPLETE|never', 1],
    ['7.2.4 SETTINGS in an answer', frame('SETTINGS'), 'FRAME_UNEXPECTED'],
    ['7.2.5 a push nobody allowed', frame('PUSH_PROMISE', "\0\0\0"), 'ID_ERROR|FRAME_UNEXPECTED'],
    ['7.1 a section that is cut', varint(1) . varint(99) . "\0\0\xd9", 'FRAME_ERROR', 1],
    ['9204 a count beyond the table', frame('HEADERS', "\xff\xff\x7f\0\x80"), 'QPACK_DECOMPRESSION_FAILED'],
) {
    my ($what, $bytes, $code, $end) = @$case;
    my $c = ask();
    my ($s, $id) = served();
    $s->raw($id, $bytes, $end // 0);
    is $c->get_answer->{status}, $what =~ /interim/ ? 103 : 502, "an origin: $what";
    is $c->get_answer->{status}, 502, '  then 502' if $what =~ /interim/;
    next if $code =~ /never/;
    like $s->ending, qr/^application (?:$code)$/, '  with the right code';
}

ok alive(client()), 'after all that weir is there';
$w->stop;
done_testing;
