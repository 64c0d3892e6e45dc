#!/usr/bin/perl
# One line a connection and one an exchange: what they say, in both formats,
# and what they never say.
use v5.36;
use JSON::PP;
use Test::More;
use Weir;

my $certs = certs();
my $ok    = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

# The fields of a text line: key=value or key="value".
sub read_text($line)
{
    my %f;
    $f{$1} = $2 // $3
        while $line =~ /(?<=\s)([\w]+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))/g;
    return \%f;
}

sub exchanges($w, $re)
{
    $w->wait_log($re);
    return grep { /$re/ } split /\n/, $w->log;
}

# ---- an exchange, as text
{
    my $w = Weir->start(set => ['intercept.enable=no']);
    my $l = listener();
    my $c = $w->client;
    $c->put(request('POST', "http://${\ $l->addr}/some/path?q=1",
        [ 'Content-Length: 6', 'Authorization: Basic c2VjcmV0',
            'Cookie: session=secret', 'Proxy-Authorization: Basic c2VjcmV0' ],
        'secret'));
    my $s = $l->accept;
    $s->get_request;
    $s->put("HTTP/1.1 201 Created\r\nSet-Cookie: token=secret\r\n"
            . "Content-Length: 5\r\n\r\nhello");
    $c->get_answer;
    $c->put(request('GET', "http://${\ $l->addr}/second"));
    $s->get_request;
    $s->put($ok);
    $c->get_answer;
    $c->close;
    my ($line) = exchanges($w, qr{ exchange .*/some/path});
    my $f = read_text($line);
    like $line, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info conn=\d+ /,
        'time, level, connection';
    is $f->{method}, 'POST', 'method';
    is $f->{target}, "http://${\ $l->addr}/some/path?q=1", 'target';
    is $f->{status}, 201, 'status';
    is $f->{up}, 6, 'bytes up';
    is $f->{down}, 5, 'bytes down';
    like $f->{client}, qr/^127\.0\.0\.1:\d+$/, 'client';
    is $f->{version}, 'http/1.1', 'what it spoke';
    is $f->{upstream}, 'new', 'a new upstream connection';
    like $f->{$_}, qr/^\d+\.\d+$/, "$_, a time"
        for qw(dns_ms connect_ms first_ms ms);
    is $f->{why}, 'none', 'why it ended: nothing went wrong';
    my $g = read_text((exchanges($w, qr{ exchange .*/second}))[0]);
    is $g->{upstream}, 'reused', 'the second one: a reused connection';
    is $g->{conn}, $f->{conn}, 'of the same client connection';
    my ($close) = exchanges($w, qr/ close .*conn=|conn=$f->{conn} close /);
    my $h = read_text($close);
    is $h->{exchanges}, 2, 'the connection\'s line counts its exchanges';
    is $h->{spoke}, 'http/1', 'says what it spoke';
    cmp_ok $h->{in}, '>', 100, 'and its bytes in';
    cmp_ok $h->{out}, '>', 100, 'and out';
    my @all = grep { /conn=$f->{conn} (?:exchange|close) / } split /\n/, $w->log;
    is scalar(@all), 3, 'two exchanges and a connection are three lines';
    unlike $w->log, qr/secret|c2VjcmV0|token=/,
        'no body, credential or cookie';
    $w->stop;
    unlike $w->log, qr/secret|c2VjcmV0|token=/, 'not at the end either';
}

# ---- a request that is refused may have a password in its target
{
    my $w = Weir->start(set => ['intercept.enable=no']);
    for my $line ('GET http://me:secret@host.test/', 'GET ftp://me:secret@h/',
        'GET me:secret@h', 'CONNECT me:secret@h:1', 'GET http:/me:secret@h/') {
        my $c = $w->client;
        $c->put("$line HTTP/1.1\r\nHost: host.test\r\n\r\n");
        is $c->get_answer->{status}, 400, "$line: refused";
    }
    $w->wait_log(qr/ exchange .*target=\*\*\*\@host\.test/);
    $w->stop;
    unlike $w->log, qr/secret/, 'no password of a target that is refused';
}

# ---- who ended it, and why
{
    my $w = Weir->start(set => [ 'intercept.enable=no',
        'upstream.response_s=3', 'proxy.idle_s=3' ]);
    my $l = listener();
    my $go = sub ($path, $then) {
        my $c = $w->client;
        $c->put(request('GET', "http://${\ $l->addr}/$path"));
        my $s = $l->accept;
        $s->get_request;
        $then->($c, $s);
        $c->get_eof;
        my $f = read_text((exchanges($w, qr{ exchange .*/$path }))[0]);
        return "$f->{status} $f->{why} $f->{by}";
    };
    like $go->('cut', sub ($c, $s) {
        $s->put("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello");
        $s->close;
    }), qr/^200 cut (?:origin|server|upstream)$/, 'an origin that cuts';
    like $go->('proto', sub ($c, $s) {
        $s->put("HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n");
    }), qr/^502 proto (?:origin|server|upstream)$/, 'an origin that babbles';
    like $go->('late', sub ($c, $s) { }),
        qr/^504 (?:late|idle) (?:origin|server|upstream)$/,
        'an origin that is silent';
    like $go->('left', sub ($c, $s) {
        $c->reset;
        $s->get_eof;
    }), qr/^0 over client$/, 'a client that leaves';
    my $c = $w->client;
    $c->ask('GET', 'http://127.0.0.1:' . closed_port() . '/refused');
    my $f = read_text((exchanges($w, qr{ exchange .*/refused }))[0]);
    is "$f->{status} $f->{why}", '502 refused', 'an origin that is not there';
    is $f->{error}, 'Connection refused', 'with the system\'s words';
    is $f->{upstream}, 'none', 'and no upstream connection';
    $c = $w->client;
    $c->put("nonsense\r\n\r\n");
    $c->get_eof;
    ok $w->wait_log(qr/ why=proto by=client /), 'a client that babbles';
    # what a client sends cannot make lines or fields of its own
    $c = $w->client;
    $c->ask('GET', 'http://127.0.0.1:' . closed_port()
            . '/forged"why=none%0aconn=99');
    my ($line) = exchanges($w, qr{forged});
    is read_text($line)->{status}, 502, 'quotes in a target stay in it'
        if $line =~ /status=502/;
    unlike $w->log, qr/^conn=99/m, 'and no line is forged';
    $w->stop;
}

# ---- a tunnel
{
    my $w = Weir->start(set => ['intercept.enable=no']);
    my $l = listener();
    my $c = $w->client;
    $c->put("CONNECT ${\ $l->addr} HTTP/1.1\r\nHost: x\r\n\r\n");
    my $s = $l->accept;
    $c->get_answer(connect => 1);
    $c->put('12345');
    $s->get(5);
    $s->put('123');
    $c->get(3);
    $s->close;
    $c->get_eof;
    $c->close;
    my ($line) = exchanges($w, qr/ tunnel /);
    my $f = read_text($line);
    is $f->{target}, $l->addr, 'tunnel: target';
    is "$f->{up} $f->{down}", '5 3', 'tunnel: bytes each way';
    like $f->{ms}, qr/^\d+\.\d+$/, 'tunnel: time';
    like $f->{ended_by}, qr/^(?:origin|server|upstream)$/,
        'tunnel: who ended it';
    is $f->{why}, 'none', 'tunnel: why';
    my @lines = grep { / tunnel / } split /\n/, $w->log;
    is scalar(@lines), 1, 'tunnel: one line';
    $w->stop;
}

# ---- interception
{
    my $o = origin(sub ($c) { $c->put($ok) while $c->get_request },
        tls => $certs->{good});
    my $w = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
        "upstream.upstream_ca=$certs->{ca}{cert}" ]);
    is curl($w, '--cacert', $w->ca, 'https://good.test/inside')->{out},
        'hello', 'an intercepted request';
    my $f = read_text((exchanges($w, qr{ exchange .*/inside}))[0]);
    is $f->{target}, 'https://good.test/inside', 'has its https target';
    is $f->{status}, 200, 'and status';
    ok $w->wait_log(qr/ close .*spoke=intercepted/), 'and spoke TLS to us';
    $w->stop;
}

# ---- JSON
{
    my $file = scratch('log');
    my $w = Weir->start(set => [ 'intercept.enable=no', 'log.format=json',
        "log.file=$file", 'upstream.response_s=1' ]);
    my $c = $w->client;
    $c->ask('GET', 'http://127.0.0.1:' . closed_port() . '/json"\\\\');
    $c->ask('GET', 'http://127.0.0.1:' . closed_port() . "/caf\xc3\xa9");
    $c->close;
    wait_for('the connection\'s line',
        sub { slurp($file) =~ /"event":"close"/ });
    $w->stop;
    my @lines = split /\n/, slurp($file);
    my @read = map { eval { JSON::PP->new->utf8->decode($_) } } @lines;
    is scalar(grep { ref } @read), scalar(@lines), 'every line is an object';
    my ($x) = grep { ($_->{event} // '') eq 'exchange' } @read;
    is $x->{status}, 502, 'numbers are numbers';
    like $x->{client}, qr/^127/, 'texts are texts';
    ok defined $x->{conn} && defined $x->{time} && defined $x->{level},
        'with connection, time, level';
    unlike $w->log, qr/exchange/, 'standard error has none of it';
}

# ---- levels
for my $case ([ error => 0, 0 ], [ warning => 0, 0 ], [ info => 1, 0 ],
    [ debug => 1, 1 ]) {
    my ($level, $exchange, $state) = @$case;
    my $w = Weir->start(set => [ 'intercept.enable=no', "log.level=$level" ]);
    my $c = $w->client;
    $c->ask('GET', 'http://127.0.0.1:' . closed_port() . '/');
    $c->close;
    $w->stop;
    is !!($w->log =~ / exchange /), !!$exchange, "$level: exchanges";
    is !!($w->log =~ / state /), !!$state, "$level: states";
}

done_testing;
