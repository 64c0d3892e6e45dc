#!/usr/bin/perl
# A browser: Chromium loads an https page of 50 assets through interception,
# trusting weir's CA alone, and talks to a WebSocket.  The page itself tells
# the origin what it saw.  Once all of it is HTTP/1; once the browser speaks
# HTTP/2 to an https:// proxy, and inside of its tunnels HTTP/2 again.
use v5.36;
use Digest::SHA qw(sha1_base64);
use JSON::PP;
use Test::More;
use Weir;

use constant ASSETS => 50;

my $certs = certs();
my $page  = <<'END';
<!doctype html><meta charset=utf-8><title>page</title>
<link rel=icon href="data:,">
LINKS
<body><p>page</p>
<script>
const seen = { scripts: 0, images: 0, styles: 0, errors: [] };
window.onerror = e => seen.errors.push(String(e));
function echo(n, size) {
    return new Promise((good, bad) => {
        const ws = new WebSocket('wss://' + location.host + '/echo');
        let got = 0;
        ws.onopen = () => ws.send('0:' + 'x'.repeat(size));
        ws.onmessage = e => {
            if (e.data !== got + ':' + 'x'.repeat(size)) bad('echo ' + got);
            if (++got === n) ws.close(1000, 'done');
            else ws.send(got + ':' + 'x'.repeat(size));
        };
        ws.onclose = e => e.code === 1000 && got === n
            ? good(got) : bad('closed ' + e.code + ' after ' + got);
    });
}
window.onload = async () => {
    seen.images = [...document.images].filter(i => i.naturalWidth > 0).length;
    seen.scripts = window.scripts;
    seen.styles = document.styleSheets.length;
    try {
        seen.echo = await echo(20, 100) + await echo(3, 60000);
        const up = new Uint8Array(3000000).fill(65);
        seen.up = (await (await fetch('/length', {method: 'POST', body: up}))
            .text());
        const down = await (await fetch('/big')).arrayBuffer();
        seen.down = down.byteLength;
        const events = await new Promise((good, bad) => {
            const s = new EventSource('/events'), got = [];
            s.onmessage = e => {
                got.push(e.data);
                if (got.length === 3) { s.close(); good(got.join()); }
            };
            s.onerror = () => bad('events');
        });
        seen.events = events;
    } catch (e) { seen.errors.push(String(e)); }
    await fetch('/report', {method: 'POST', body: JSON.stringify(seen)});
};
</script>
END
my %assets;
for my $n (1 .. ASSETS) {
    my $kind = $n % 5;
    if ($kind == 0) {
        $assets{"/style$n.css"} = [ 'text/css', "p { margin: ${n}px }\n" ];
        $page =~ s{LINKS}{<link rel=stylesheet href=/style$n.css>\nLINKS};
    } elsif ($kind <= 2) {
        $assets{"/script$n.js"} = [ 'text/javascript',
            "window.scripts = (window.scripts || 0) + 1;\n" . '//' x (999 * $n) ];
        $page =~ s{LINKS}{<script src=/script$n.js></script>\nLINKS};
    } else {
        $assets{"/image$n.svg"} = [ 'image/svg+xml',
            "<svg xmlns='http://www.w3.org/2000/svg' width='$n' height='9'/>" ];
        $page =~ s{<body>}{<body><img src=/image$n.svg>\n};
    }
}
$page =~ s/LINKS//;

sub answer($c, $type, $body, $how = 0)
{
    my $head = "HTTP/1.1 200 OK\r\nContent-Type: $type\r\n"
        . "Cache-Control: no-store\r\n";
    $c->put($how
        ? "${head}Transfer-Encoding: chunked\r\n\r\n"
            . sprintf("%x\r\n%s\r\n0\r\n\r\n", length $body, $body)
        : "${head}Content-Length: " . length($body) . "\r\n\r\n$body");
}

# RFC 6455: masked frames from the browser, the same unmasked back.
sub echo($c, $r)
{
    my $accept = sha1_base64(field($r, 'sec-websocket-key')
            . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';
    $c->put("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            . "Upgrade: websocket\r\nSec-WebSocket-Accept: $accept\r\n\r\n");
    while (length(my $head = $c->get(2)) == 2) {
        my ($op, $n) = unpack 'CC', $head;
        $n &= 127;
        my $more = $n == 126 ? $c->get(2) : '';
        $n = unpack 'n', $more if $n == 126;
        my $mask = $c->get(4);
        my $data = $n ? $c->get($n) : '';
        $data ^.= substr($mask x (1 + $n / 4), 0, $n);
        $c->put(pack('CC', $op, $n < 126 ? $n : 126) . $more . $data);
        last if ($op & 15) == 8;
    }
}

my $o = origin(sub ($c) {
    while (my $r = $c->get_request) {
        my $path = $r->{target};
        if ($path eq '/') {
            answer($c, 'text/html', $page, 1);
        } elsif (my $asset = $assets{$path}) {
            answer($c, @$asset, $path =~ /[02468]\./);
        } elsif ($path eq '/echo') {
            $c->note('echo of ' . (field($r, 'via') // 'nobody'));
            return echo($c, $r);
        } elsif ($path eq '/length') {
            answer($c, 'text/plain', length $r->{body});
        } elsif ($path eq '/big') {
            answer($c, 'application/octet-stream', 'z' x 5_000_000, 1);
        } elsif ($path eq '/events') {
            $c->put("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    . "\r\n");
            $c->put("data: $_\n\n") for 1 .. 3;
            $c->get_some; # until the page has closed it
            return;
        } elsif ($path eq '/report') {
            answer($c, 'text/plain', 'thanks');
            $c->note("report $r->{body}");
        } else {
            $c->note("odd $path");
            $c->put("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    }
}, tls => { $certs->{good}->%*, alpn => ['http/1.1'] });

# Chromium trusts what is in the NSS database of its HOME.
my $home = scratch('browser', 1);
mkdir "$home/.pki";
mkdir "$home/.pki/nssdb";
my @db = ('-d', "sql:$home/.pki/nssdb");
my $weir_home = scratch('weir', 1); # one CA for all
is run([ 'certutil', @db, '-N', '--empty-password' ])->{exit}, 0,
    'an NSS database';
sub browse($proxy, $url, @more)
{
    return start_process([ 'chromium', qw(--headless --no-sandbox --disable-gpu
        --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --disable-dev-shm-usage
        --proxy-bypass-list=<-loopback>), "--proxy-server=$proxy",
        "--user-data-dir=" . scratch('profile', 1), @more, $url ],
        env => { HOME => $home });
}

my $n_pages = 0;

# The page, with these settings and a browser that is told so of its proxy.
sub page_through($what, $set, $proxy_of)
{
    my $w = Weir->start(set => [ 'resolve.good.test=127.0.0.1:' . $o->port,
        "upstream.upstream_ca=$certs->{ca}{cert}", 'proxy.via=tester', @$set ],
        home => $weir_home);

    run([ 'certutil', @db, '-A', '-t', 'C,,', '-n', 'weir', '-i', $w->ca ]);
    my $browser = browse($proxy_of->($w), 'https://good.test/', '--remote-debugging-port=0');
    my $nth = ++$n_pages;
    my $text = eval {
        wait_for('the report', sub {
            return ($o->notes =~ /^report (.*)/mg)[ $nth - 1 ];
        });
    };
    diag $@, slurp($browser->{err}), substr $w->log, -3000 if !$text;
    my $seen = $text ? decode_json($text) : {};
    is_deeply $seen->{errors}, [], 'the page met no error';
    is $seen->{scripts}, 20, '20 scripts ran';
    is $seen->{images}, 20, '20 images were shown';
    is $seen->{styles}, 10, '10 style sheets';
    is $seen->{echo}, 23, 'a WebSocket echoed 23 messages';
    is $seen->{up}, 3_000_000, '3 MB were posted';
    is $seen->{down}, 5_000_000, '5 MB were fetched';
    is $seen->{events}, '1,2,3', 'events arrived';
    like $o->notes, qr/^echo of [\d.]+ tester/m, 'all of it through weir';
    stop_process($browser);
    my $n = () = $w->log =~ m{ exchange .*target=https://good\.test/(?:style|script|image)\d+\.\w+ status=200 }g;
    is $n, ASSETS, 'the log has all ' . ASSETS . ' assets';
    return $w;
}

note '---- HTTP/1';
my $w = page_through('HTTP/1', [], sub ($w) { $w->addr });
$w->stop;
note '---- HTTP/2';
$w = page_through('HTTP/2', ['intercept.alpn=h2'],
    sub ($w) { 'https://localhost:' . $w->port });
like $w->log, qr/stream=\d+ .*version=http\/2 .*target=https:\/\/good\.test/,
    'it was asked for in HTTP/2';
ok $w->wait_log(qr/ close .*spoke=(?:tls|intercepted)\+http\/2/),
    'inside of a tunnel in HTTP/2';

# A page in the clear, and one whose certificate is no good.
my ($echo_script) = $page =~ /^(function echo.*?^\})/ms;
my $plain = origin(sub ($c) {
    while (my $r = $c->get_request) {
        return echo($c, $r) if $r->{target} eq '/echo';
        $c->note("seen $r->{target} " . (field($r, 'via') // 'direct'));
        $c->note("ws $r->{body}") if $r->{method} eq 'POST';
        answer($c, 'text/html', '<!doctype html><p>in the clear</p>'
                . ($r->{target} eq '/ws' ? '<script>'
                . $echo_script =~ s/wss:/ws:/r . <<'END' : ''));
const tell = what => fetch('/told', {method: 'POST', body: String(what)});
echo(20, 100).then(() => echo(3, 60000)).then(tell, tell);
</script>
END
    }
});
my $proxy = 'https://localhost:' . $w->port;
my $n_ws = 0;
for my $by ($proxy, 'http://' . $w->addr) {
    my $browser = browse($by, 'http://' . $plain->addr . '/ws',
        '--remote-debugging-port=0');
    my @told;
    eval {
        wait_for('word of the WebSockets',
            sub { (@told = $plain->notes =~ /^ws (.*)/mg) > $n_ws });
    };
    is $told[ $n_ws++ ], 3, 'ws:// through ' . $by =~ s/:.*//r;
    stop_process($browser);
}
my $dom = browse($proxy, 'http://' . $plain->addr . '/clear', '--dump-dom');
is reap($dom), 0, 'a page in the clear';
like slurp($dom->{out}), qr{<p>in the clear</p>}, 'is shown';
like $plain->notes, qr{^seen /clear [\d.]+ tester}m, 'and went through weir';
my $bad = origin(sub ($c) { $c->get_request }, tls => $certs->{expired});
$dom = browse($proxy, 'https://127.0.0.1:' . $bad->port . '/', '--dump-dom');
is reap($dom), 0, 'a page with an expired certificate';
like slurp($dom->{out}), qr{502.*expired}s, 'shows weir\'s reason instead';

$w->stop;
done_testing;
