#!/usr/bin/perl
# What RFC 9113 and RFC 7541 forbid, section by section: on cleartext and on
# TLS each mistake has its answer, and no origin ever sees it.
use v5.36;
use lib 't/lib';
use Test::More;
use Weir;
use Weir::H2;

my $w  = Weir->start(set => ['http2.priorities=1000']);
my $me = $w->addr;
my $tls;

sub fresh(%o)
{
    my $wire = $w->client;
    if ($tls) {
        $wire->tls_client(alpn => ['h2'], sni => 'localhost')
            or die "TLS: $wire->{error}\n";
    }
    return Weir::H2->client($wire, %o);
}

sub get { return Weir::H2::get($me, @_) }

# A connection error of one of these codes.
sub dies($c, $what, @codes)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $how = $c->ending;
    return ok((grep { $_ eq $how } @codes), "$what: GOAWAY @codes")
        || diag("  it ended with $how");
}

# A stream error; the connection goes on.
sub resets($c, $id, $what, @codes)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $s = $c->stream($id);
    # An answer may have been on its way before.
    eval { $c->until(sub { $s->{reset} || $c->{goaway} }) };
    my $how = $s->{reset} // $c->{goaway} // $s->{status} // 'nothing';
    return ok((grep { $_ eq $how } @codes), "$what: RST_STREAM @codes")
        || diag("  there came $how");
}

sub served($c, $id, $what)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $s = $c->answer($id);
    return is($s->{status} // $s->{reset} // $c->{goaway}, 200, $what);
}

sub lives($c, $what)
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok($c->alive, "$what: the connection goes on");
}

sub preface_and_settings
{
    { # 3.4
        my $c = fresh(bare => 1);
        $c->{wire}->put("PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"
                . $c->frame('SETTINGS', 0, 0));
        dies($c, '3.4 another preface', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh(bare => 1);
        $c->{wire}->put(Weir::H2::PREFACE . $c->frame('PING', 0, 0, 'x' x 8));
        dies($c, '3.4 first frame is no SETTINGS', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $f = $c->get_frame;
        is $f->{type}, 'SETTINGS', '3.4 the first frame we send is SETTINGS';
        served($c, $c->request([ get() ]), 'a request is answered');
        is $c->{settings}{8}, 1, 'extended CONNECT is offered';
        ok $c->{settings}{3} >= 100, 'and at least 100 streams';
    }
    { # byte by byte
        my $c = fresh(bare => 1);
        my $all = Weir::H2::PREFACE . $c->frame('SETTINGS', 0, 0)
            . $c->frame('HEADERS', 5, 1, Weir::H2::hpack(get()));
        for my $byte (split //, $all) {
            $c->{wire}->put($byte);
        }
        served($c, 1, 'a request that comes byte by byte is answered');
    }
}

# What has to be taken, in every form that RFC 9113 and RFC 7541 allow.
sub allowed
{
    my @post   = get('/', 'POST');
    my $weight = sub ($on, $weight) { pack 'NC', $on, $weight };
    { # 5.1: a stream in other states
        my $c = fresh;
        $c->put('PRIORITY', 0, 1, $weight->(0, 255));
        lives($c, '5.1 PRIORITY on an idle stream');
        served($c, $c->request([ get() ]), '  which is opened then');
        $c->put('PRIORITY', 0, 1, $weight->(0, 255));
        lives($c, '5.1 PRIORITY on a closed stream');
    }
    for my $between ('', 'PRIORITY') {
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->put('PRIORITY', 0, $id, $weight->(0, 255)) if $between;
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 1);
        $c->until(sub { length $c->stream($id)->{body} });
        is length $c->stream($id)->{body}, 1,
            "5.1 WINDOW_UPDATE on a half-closed stream $between";
    }
    {
        my $c = fresh;
        $c->put('RST_STREAM', 0, $c->request([ get() ]), pack 'N', 8);
        lives($c, '5.1 RST_STREAM on a half-closed stream');
    }
    { # 6.1
        my $c = fresh;
        my $id = $c->request(\@post, end => 0);
        $c->data($id, 'test', 1);
        is $c->answer($id)->{status}, 405, '6.1 DATA';
        $id = $c->request(\@post, end => 0);
        $c->data($id, 'test');
        $c->data($id, 'test', 1);
        is $c->answer($id)->{status}, 405, '6.1 DATA, twice';
        $id = $c->request(\@post, end => 0);
        $c->put('DATA', 9, $id, "\x06test" . "\0" x 6);
        is $c->answer($id)->{status}, 405, '6.1 DATA with padding';
        $id = $c->request(\@post, end => 0);
        $c->put('HEADERS', 5, $id, Weir::H2::hpack('x-test', 'ok'));
        is $c->answer($id)->{status}, 405, '8.1 trailers';
        $id = $c->request([ get('/', 'HEAD') ]);
        my $s = $c->answer($id);
        is "$s->{status}$s->{body}", 200, '8.1 HEAD';
    }
    { # 6.2
        my $block = Weir::H2::hpack(get());
        for my $case (['padding', 13, "\x03$block\0\0\0"],
            ['priority', 37, $weight->(0, 255) . $block])
        {
            my ($what, $flags, $payload) = @$case;
            my $c = fresh;
            $c->put('HEADERS', $flags, 1, $payload);
            served($c, 1, "6.2 HEADERS with $what");
        }
    }
    for my $case (['weight 1', 1, 0, 0], ['weight 256', 1, 0, 255],
        ['a dependency', 3, 1, 0], ['an exclusive one', 1, 0x80000000, 0],
        ['a stream above', 3, 0, 255])
    { # 6.3
        my ($what, $id, $on, $weight_of) = @$case;
        my $c = fresh;
        $c->put('PRIORITY', 0, $id, $weight->($on, $weight_of));
        served($c, $c->request([ get() ]), "6.3 PRIORITY with $what");
    }
    { # 6.4, 6.8, 6.9
        my $c = fresh;
        $c->put('RST_STREAM', 0, $c->request(\@post, end => 0), pack 'N', 8);
        lives($c, '6.4 RST_STREAM');
        $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 1);
        my $id = $c->request(\@post, end => 0);
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 1);
        $c->data($id, '', 1);
        is $c->answer($id)->{status}, 405, '6.9 WINDOW_UPDATE';
    }
    {
        my $c = fresh;
        $c->put('GOAWAY', 0, 0, pack 'NN', 0, 0);
        is $c->ending, 'eof', '6.8 GOAWAY: the connection ends';
    }
    { # 6.5.3
        my $c = fresh;
        $c->put('SETTINGS', 0, 0, Weir::H2::setting(4, 100, 4, 1));
        my $acks = 0;
        while ($acks < 2 && (my $f = $c->get_frame)) {
            $acks++ if $f->{type} eq 'SETTINGS' && $f->{flags} & 1;
        }
        is $acks, 2, '6.5.3 SETTINGS are acknowledged';
        my $id = $c->request([ get() ]);
        $c->until(sub { length $c->stream($id)->{body} });
        is length $c->stream($id)->{body}, 1, '6.5.3 the last value counts';
    }
    my $name  = Weir::H2::hpack_string('x-test');
    my $value = Weir::H2::hpack_string('value');
    my $coded = "\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4"; # x-test: h2spec
    for my $case (
        ['6.1 an indexed field', "\xba"],
        ['6.2.1 with indexing, a name of the table', "\x7a$value"],
        ['6.2.1 with indexing, a new name', "\x40$name$value"],
        ['6.2.1 with indexing, in Huffman code', "\x40$coded"],
        ['6.2.2 without indexing, a name of the table', "\x0f\x2b$value"],
        ['6.2.2 without indexing, in Huffman code', "\0$coded"],
        ['6.2.3 never indexed, a name of the table', "\x1f\x2b$value"],
        ['6.2.3 never indexed, a new name', "\x10$name$value"],
        ['6.2.3 never indexed, in Huffman code', "\x10$coded"],
    ) {
        my ($what, $more) = @$case;
        my $c = fresh;
        $c->put('HEADERS', 5, 1, Weir::H2::hpack(get()) . $more);
        served($c, 1, "7541 $what");
    }
    for my $case (['one size update', "\x20"], ['two', "\x20\x3f\xe1\x1f"]) {
        my ($what, $first) = @$case;
        my $c = fresh;
        $c->put('HEADERS', 5, 1, $first . Weir::H2::hpack(get()));
        served($c, 1, "7541 6.3 $what");
    }
}

sub frames
{
    { # 4.1
        my $c = fresh;
        $c->put(0x16, 0, 0, 'x' x 8);
        lives($c, '4.1 a frame of unknown type');
        $c->put('PING', 0x16, 0, '12345678');
        lives($c, '4.1 undefined flags');
        $c->{wire}->put(pack('CnCCN', 0, 8, 6, 0, 0x80000000) . '12345678');
        lives($c, '4.1 the reserved bit');
    }
    { # 4.2
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->data($id, 'x' x 16384, 1);
        my $s = $c->answer($id);
        is $s->{status}, 405, '4.2 DATA of 16384 bytes';
    }
    {
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->data($id, 'x' x 16385, 1);
        dies($c, '4.2 DATA of 16385 bytes', 'FRAME_SIZE_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 5, 1, Weir::H2::hpack(get(), 'x', 'y' x 16385));
        dies($c, '4.2 HEADERS over the limit', 'FRAME_SIZE_ERROR');
    }
    { # 4.3
        my $c = fresh;
        $c->put('HEADERS', 5, 1, "\x40");
        dies($c, '4.3 a block that ends within a field', 'COMPRESSION_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('PRIORITY', 0, 1, pack 'NC', 0, 15);
        dies($c, '4.3 PRIORITY within a header block', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('HEADERS', 5, 3, Weir::H2::hpack(get()));
        dies($c, '4.3 HEADERS of another stream within a block',
            'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put(0x20, 0, 0, 'x');
        dies($c, '4.3 an unknown frame within a block', 'PROTOCOL_ERROR');
    }
}

sub streams
{
    for my $case (['DATA', 0, 'x'], ['RST_STREAM', 0, pack 'N', 8],
        ['WINDOW_UPDATE', 0, pack 'N', 100], ['CONTINUATION', 4, ''])
    {
        my ($type, $flags, $payload) = @$case;
        my $c = fresh;
        $c->put($type, $flags, 1, $payload);
        dies($c, "5.1 $type on an idle stream", 'PROTOCOL_ERROR');
    }
    { # half-closed (remote)
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->data($id, 'x', 1);
        resets($c, $id, '5.1 DATA after END_STREAM', 'STREAM_CLOSED');
    }
    {
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->put('HEADERS', 5, $id, Weir::H2::hpack('x', 'y'));
        resets($c, $id, '5.1 HEADERS after END_STREAM', 'STREAM_CLOSED');
    }
    {
        my $c = fresh;
        my $id = $c->request([ get() ]);
        $c->put('CONTINUATION', 4, $id, Weir::H2::hpack('x', 'y'));
        dies($c, '5.1 CONTINUATION after END_HEADERS', 'PROTOCOL_ERROR',
            'STREAM_CLOSED');
    }
    for my $case (['DATA', 1, 'x'], ['HEADERS', 5, Weir::H2::hpack(get())],
        ['CONTINUATION', 4, Weir::H2::hpack('x', 'y')])
    { # closed by the client's reset
        my ($type, $flags, $payload) = @$case;
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->put('RST_STREAM', 0, $id, pack 'N', 8);
        $c->put($type, $flags, $id, $payload);
        resets($c, $id, "5.1 $type after RST_STREAM", 'STREAM_CLOSED',
            $type eq 'CONTINUATION' ? 'PROTOCOL_ERROR' : ());
    }
    { # closed by both
        my $c = fresh;
        my $id = $c->request([ get() ]);
        served($c, $id, 'a request');
        $c->data($id, 'x', 1);
        dies($c, '5.1 DATA on a closed stream', 'STREAM_CLOSED');
    }
    {
        my $c = fresh;
        my $id = $c->request([ get() ]);
        served($c, $id, 'a request');
        $c->put('CONTINUATION', 4, $id, Weir::H2::hpack('x', 'y'));
        dies($c, '5.1 CONTINUATION on a closed stream', 'STREAM_CLOSED',
            'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $id = $c->request([ get() ]);
        served($c, $id, 'a request');
        $c->put('HEADERS', 5, $id, Weir::H2::hpack(get()));
        dies($c, '5.1 HEADERS on a closed stream', 'STREAM_CLOSED');
    }
    {
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->put('RST_STREAM', 0, $id, pack 'N', 8);
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 1);
        $c->put('PRIORITY', 0, $id, pack 'NC', 0, 1);
        lives($c, '5.1 what may follow a reset');
    }
    { # 5.1.1
        my $c = fresh;
        $c->request([ get() ], id => 2);
        dies($c, '5.1.1 an even stream', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->request([ get() ], id => 5);
        $c->request([ get() ], id => 3);
        dies($c, '5.1.1 a stream lower than one before', 'PROTOCOL_ERROR',
            'STREAM_CLOSED');
    }
    { # 5.1.2
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        $c->get_frame;
        my $max = $c->{settings}{3};
        $c->request([ get() ]) for 1 .. $max;
        my $id = $c->request([ get() ]);
        resets($c, $id, '5.1.2 one stream too many', 'REFUSED_STREAM',
            'PROTOCOL_ERROR');
    }
    { # 5.3.1 of RFC 7540
        my $c = fresh;
        $c->put('HEADERS', 0x25, 1, pack('NC', 1, 255)
                . Weir::H2::hpack(get()));
        resets($c, 1, '5.3.1 HEADERS that depend on themselves',
            'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('PRIORITY', 0, 2, pack 'NC', 2, 1);
        resets($c, 2, '5.3.1 PRIORITY that depends on itself',
            'PROTOCOL_ERROR');
    }
    { # 5.5
        my $c = fresh;
        $c->put(0xff, 0, 1, '');
        served($c, $c->request([ get() ]), '5.5 an unknown frame is ignored');
    }
}

sub frame_types
{
    { # 6.1
        my $c = fresh;
        $c->data(0, 'x', 1);
        dies($c, '6.1 DATA on stream 0', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->put('DATA', 9, $id, "\x06test");
        dies($c, '6.1 more padding than frame', 'PROTOCOL_ERROR');
    }
    { # 6.2
        my $c = fresh;
        $c->put('HEADERS', 5, 0, Weir::H2::hpack(get()));
        dies($c, '6.2 HEADERS on stream 0', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $block = Weir::H2::hpack(get());
        $c->put('HEADERS', 13, 1, chr(1 + length $block) . $block);
        dies($c, '6.2 more padding than frame', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $block = Weir::H2::hpack(get());
        $c->put('HEADERS', 45, 1, "\x03" . pack('NC', 0, 9) . $block
                . "\0\0\0");
        served($c, 1, '6.2 padding and priority');
    }
    for my $case (
        ['6.3 PRIORITY on stream 0', 'PROTOCOL_ERROR', 'PRIORITY', 0, 0,
            pack 'NC', 0, 1],
        ['6.4 RST_STREAM on stream 0', 'PROTOCOL_ERROR', 'RST_STREAM', 0, 0,
            pack 'N', 8],
        ['6.5 SETTINGS ACK with content', 'FRAME_SIZE_ERROR', 'SETTINGS', 1,
            0, Weir::H2::setting(4, 1)],
        ['6.5 SETTINGS on a stream', 'PROTOCOL_ERROR', 'SETTINGS', 0, 1,
            Weir::H2::setting(4, 1)],
        ['6.5 SETTINGS of 3 bytes', 'FRAME_SIZE_ERROR', 'SETTINGS', 0, 0,
            "\0\3\0"],
        ['6.5.2 ENABLE_PUSH 2', 'PROTOCOL_ERROR', 'SETTINGS', 0, 0,
            Weir::H2::setting(2, 2)],
        ['6.5.2 INITIAL_WINDOW_SIZE too large', 'FLOW_CONTROL_ERROR',
            'SETTINGS', 0, 0, Weir::H2::setting(4, 0x80000000)],
        ['6.5.2 MAX_FRAME_SIZE too small', 'PROTOCOL_ERROR', 'SETTINGS', 0, 0,
            Weir::H2::setting(5, 16383)],
        ['6.5.2 MAX_FRAME_SIZE too large', 'PROTOCOL_ERROR', 'SETTINGS', 0, 0,
            Weir::H2::setting(5, 16777216)],
        ['6.7 PING on a stream', 'PROTOCOL_ERROR', 'PING', 0, 1, 'x' x 8],
        ['6.7 PING of 6 bytes', 'FRAME_SIZE_ERROR', 'PING', 0, 0, 'x' x 6],
        ['6.8 GOAWAY on a stream', 'PROTOCOL_ERROR', 'GOAWAY', 0, 1,
            "\0" x 8],
        ['6.9 WINDOW_UPDATE of 0', 'PROTOCOL_ERROR', 'WINDOW_UPDATE', 0, 0,
            pack 'N', 0],
        ['6.9 WINDOW_UPDATE of 3 bytes', 'FRAME_SIZE_ERROR', 'WINDOW_UPDATE',
            0, 0, "\0\0\1"],
        ['6.6 PUSH_PROMISE from a client', 'PROTOCOL_ERROR', 'PUSH_PROMISE',
            4, 1, pack('N', 2) . Weir::H2::hpack(get())],
    ) {
        my ($what, $code, @frame) = @$case;
        my $c = fresh;
        $c->put(@frame);
        dies($c, $what, $code);
    }
    for my $case (['6.3 PRIORITY', 'PRIORITY', "\0\0\0\0"],
        ['6.4 RST_STREAM', 'RST_STREAM', "\0\0\0"])
    {
        my ($what, $type, $payload) = @$case;
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->put($type, 0, $id, $payload);
        my $s = $c->stream($id);
        $c->until(sub { $c->{goaway} });
        my $how = $c->{goaway} // 'nothing';
        is $how, 'FRAME_SIZE_ERROR', "$what of the wrong size";
    }
    {
        my $c = fresh;
        $c->put('PING', 'ACK', 0, 'unasked!');
        lives($c, '6.7 an unasked PING ACK');
        my $f;
        $c->put('PING', 0, 0, 'echo me!');
        1 while ($f = $c->get_frame) && $f->{type} ne 'PING';
        is $f->{payload}, 'echo me!', '6.7 PING is answered as it was';
    }
    {
        my $c = fresh;
        $c->put('SETTINGS', 0, 0, Weir::H2::setting(0xff, 1));
        lives($c, '6.5.2 an unknown setting');
    }
}

sub flow_control
{
    { # 6.9.1
        my $c = fresh(settings => Weir::H2::setting(4, 1));
        my $id = $c->request([ get() ]);
        my $s;
        $c->until(sub { length(($c->{streams}{$id} // {})->{body} // '') });
        is length $c->{streams}{$id}{body}, 1, '6.9.1 no more than the window';
    }
    {
        my $c = fresh;
        $c->put('WINDOW_UPDATE', 0, 0, pack 'N', 0x7fffffff) for 1 .. 2;
        dies($c, '6.9.1 the window of the connection overflows',
            'FLOW_CONTROL_ERROR');
    }
    {
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->{wire}->put($c->frame('WINDOW_UPDATE', 0, $id,
            pack 'N', 0x7fffffff) x 2);
        resets($c, $id, '6.9.1 the window of a stream overflows',
            'FLOW_CONTROL_ERROR');
    }
    {
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 0);
        resets($c, $id, '6.9 WINDOW_UPDATE of 0 on a stream',
            'PROTOCOL_ERROR');
    }
    { # 6.9.2
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $id = $c->request([ get() ]);
        $c->put('SETTINGS', 0, 0, Weir::H2::setting(4, 1));
        $c->until(sub { length(($c->{streams}{$id} // {})->{body} // '') });
        is length $c->{streams}{$id}{body}, 1,
            '6.9.2 a window that is opened by SETTINGS';
    }
    {
        my $c = fresh(settings => Weir::H2::setting(4, 3));
        my $id = $c->request([ get() ]);
        $c->until(sub { length(($c->{streams}{$id} // {})->{body} // '') });
        $c->put('SETTINGS', 0, 0, Weir::H2::setting(4, 2));
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 2);
        $c->until(sub { length $c->{streams}{$id}{body} >= 4 });
        is length $c->{streams}{$id}{body}, 4,
            '6.9.2 a window that was negative';
    }
    {
        my $c = fresh(settings => Weir::H2::setting(4, 0));
        my $silent = listener();
        my $id = $c->request([ Weir::H2::get($silent->addr) ]);
        $c->put('WINDOW_UPDATE', 0, $id, pack 'N', 2**31 - 1);
        $c->put('SETTINGS', 0, 0, Weir::H2::setting(4, 1));
        resets($c, $id, '6.9.2 SETTINGS that make a window overflow',
            'FLOW_CONTROL_ERROR');
    }
    { # 6.10
        my $c = fresh;
        my $block = Weir::H2::hpack(get());
        $c->put('HEADERS', 1, 1, substr $block, 0, 3);
        $c->put('CONTINUATION', 0, 1, substr $block, 3, 5);
        $c->put('CONTINUATION', 4, 1, substr $block, 8);
        served($c, 1, '6.10 CONTINUATION frames');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('CONTINUATION', 4, 3, Weir::H2::hpack('x', 'y'));
        dies($c, '6.10 CONTINUATION of another stream', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('CONTINUATION', 4, 0, Weir::H2::hpack('x', 'y'));
        dies($c, '6.10 CONTINUATION on stream 0', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('CONTINUATION', 4, 1, Weir::H2::hpack('x', 'y'));
        $c->put('CONTINUATION', 4, 1, Weir::H2::hpack('x', 'y'));
        dies($c, '6.10 CONTINUATION after the last one', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 0, 1, Weir::H2::hpack(get('/', 'POST')));
        $c->put('CONTINUATION', 0, 1, Weir::H2::hpack('x', 'y'));
        $c->put('DATA', 1, 1, 'test');
        dies($c, '6.10 DATA between CONTINUATION frames', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 0, 1, Weir::H2::hpack(get('/', 'POST')));
        $c->put('DATA', 1, 1, 'test');
        $c->put('CONTINUATION', 0, 1, Weir::H2::hpack('x', 'y'));
        dies($c, '6.10 CONTINUATION behind DATA', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        $c->put('HEADERS', 1, 1, Weir::H2::hpack(get()));
        $c->put('DATA', 1, 1, 'x');
        dies($c, '6.10 DATA within a header block', 'PROTOCOL_ERROR');
    }
    { # 7
        my $c = fresh;
        $c->put('GOAWAY', 0, 0, pack 'NN', 0, 0xff);
        ok defined $c->ending, '7 GOAWAY with an unknown code';
    }
    {
        my $c = fresh;
        my $id = $c->request([ get('/', 'POST') ], end => 0);
        $c->put('RST_STREAM', 0, $id, pack 'N', 0xff);
        lives($c, '7 RST_STREAM with an unknown code');
    }
}

sub malformed_requests
{
    my @post = get('/', 'POST');
    my @case = (
        ['8.2.1 upper case in a name', get(), 'X-TEST', 'ok'],
        ['8.2.1 a space in a name', get(), 'x test', 'ok'],
        ['8.2.1 a colon in a name', get(), 'x:test', 'ok'],
        ['8.2.1 an empty name', get(), '', 'ok'],
        ['8.2.1 LF in a value', get(), 'x-test', "a\nb: c"],
        ['8.2.1 CR in a value', get(), 'x-test', "a\rb"],
        ['8.2.1 NUL in a value', get(), 'x-test', "a\0b"],
        ['8.2.1 a value that begins with a space', get(), 'x-test', ' a'],
        ['8.2.2 connection', get(), 'connection', 'keep-alive'],
        ['8.2.2 keep-alive', get(), 'keep-alive', 'timeout=5'],
        ['8.2.2 proxy-connection', get(), 'proxy-connection', 'close'],
        ['8.2.2 transfer-encoding', get(), 'transfer-encoding', 'chunked'],
        ['8.2.2 upgrade', get(), 'upgrade', 'h2c'],
        ['8.2.2 te', get(), 'te', 'trailers, deflate'],
        ['8.3 an unknown pseudo-field', get(), ':test', 'ok'],
        ['8.3 the pseudo-field of an answer', get(), ':status', '200'],
        ['8.3 a pseudo-field behind a field', ':method', 'GET', ':scheme',
            'http', ':authority', $me, 'x', 'y', ':path', '/'],
        ['8.3.1 no :method', ':scheme', 'http', ':authority', $me, ':path',
            '/'],
        ['8.3.1 no :scheme', ':method', 'GET', ':authority', $me, ':path',
            '/'],
        ['8.3.1 no :path', ':method', 'GET', ':scheme', 'http',
            ':authority', $me],
        ['8.3.1 an empty :path', get('')],
        ['8.3.1 a :path without a slash', get('x')],
        ['8.3.1 a :path with a space', get('/a b')],
        ['8.3.1 a :path with HTTP/1.1 in it', get("/ HTTP/1.1\r\nx: y")],
        ['8.3.1 a :path with a fragment', get('/#x')],
        ['8.3.1 * with GET', get('*')],
        ['8.3.1 two :method', ':method', 'GET', get()],
        ['8.3.1 two :scheme', ':scheme', 'http', get()],
        ['8.3.1 two :path', ':path', '/', get()],
        ['8.3.1 two :authority', ':authority', $me, get()],
        ['8.3.1 userinfo', Weir::H2::get("u:p\@$me")],
        ['8.3.1 an empty :authority', Weir::H2::get('')],
        ['8.3.1 a slash in :authority', Weir::H2::get("$me/x")],
        ['8.3.1 Host that differs', get(), 'host', 'elsewhere.test'],
        ['8.3.1 two Host', get(), 'host', $me, 'host', $me],
        ['8.3.1 a bad :method', get('/', 'G ET')],
        ['8.3.1 a bad :scheme', get('/', 'GET', 'ht tp')],
        ['8.5 CONNECT with a path', ':method', 'CONNECT', ':scheme', 'http',
            ':path', '/', ':authority', 'a:1'],
        ['8441 :protocol without CONNECT', get(), ':protocol', 'websocket'],
        ['8.1.1 two content-length', @post, 'content-length', 1,
            'content-length', 2],
        ['8.1.1 a bad content-length', @post, 'content-length', '1x'],
    );
    for my $case (@case) {
        my ($what, @fields) = @$case;
        my $c = fresh;
        resets($c, $c->request(\@fields), $what, 'PROTOCOL_ERROR');
        lives($c, $what);
    }
    for my $n (1, 5) { # DATA of 4
        my $c = fresh;
        my $id = $c->request([ @post, 'content-length', $n ], end => 0);
        $c->data($id, 'test', 1);
        resets($c, $id, "8.1.1 content-length $n, DATA of 4",
            'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $id = $c->request([ @post, 'content-length', 5 ], end => 0);
        $c->data($id, 'te');
        $c->data($id, 'st', 1);
        resets($c, $id, '8.1.1 content-length over several DATA',
            'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $id = $c->request([ @post, 'content-length', 5 ]);
        resets($c, $id, '8.1.1 content-length, no DATA', 'PROTOCOL_ERROR');
    }
    { # 8.1
        my $c = fresh;
        my $id = $c->request(\@post, end => 0);
        $c->put('HEADERS', 4, $id, Weir::H2::hpack('x', 'y'));
        resets($c, $id, '8.1 trailers without END_STREAM', 'PROTOCOL_ERROR');
    }
    {
        my $c = fresh;
        my $id = $c->request(\@post, end => 0);
        $c->put('HEADERS', 5, $id, Weir::H2::hpack(':method', 'GET'));
        resets($c, $id, '8.1 a pseudo-field in trailers', 'PROTOCOL_ERROR');
    }
}

sub compression
{
    my $ok = Weir::H2::hpack(get());
    for my $case (
        ['2.3.3 an index that is not there', $ok . "\xc6"],
        ['2.3.3 a name that is not there', $ok . "\x7f\x07\x01x"],
        ['4.2 a size update at the end', $ok . "\x21"],
        ['5.2 padding of a string longer than 7 bits',
            $ok . "\0\x01x\x83\xff\xff\xff"],
        ['5.2 padding that is not EOS', $ok . "\0\x01x\x81\x00"],
        ['5.2 EOS in a string', $ok . "\0\x01x\x84\xff\xff\xff\xff"],
        ['6.1 index 0', $ok . "\x80"],
        ['6.3 a table larger than allowed', "\x3f\xe1\x7f" . $ok],
    ) {
        my ($what, $block) = @$case;
        my $c = fresh;
        $c->put('HEADERS', 5, 1, $block);
        dies($c, "7541 $what", 'COMPRESSION_ERROR');
    }
}

for my $leg ('cleartext', 'TLS') {
    $tls = $leg eq 'TLS';
    note "---- $leg";
    preface_and_settings();
    allowed();
    frames();
    streams();
    frame_types();
    flow_control();
    malformed_requests();
    compression();
}
$w->stop;
done_testing;
