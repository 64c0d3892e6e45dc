#!/usr/bin/perl
# Chromium made to speak QUIC with every host, whose names all lead to weir: an
# intercepted page of many parts, in HTTP/3, of an origin that has none.  The
# page itself tells the origin what it saw.
use v5.36;
use lib 't/lib';
use JSON::PP;
use Test::More;
use Weir;

use constant ASSETS => 40;

my $page = '<!doctype html><meta charset=utf-8><title>page</title>'
    . '<link rel=icon href="data:,">'
    . join('', map { "<script src=/script$_.js></script>" } 1 .. ASSETS / 2)
    . '<body>' . join('', map { "<img src=/image$_.svg>" } 1 .. ASSETS / 2)
    . <<'END';
<script>
const seen = { errors: [] };
window.onerror = e => seen.errors.push(String(e));
window.onload = async () => {
    seen.scripts = window.scripts;
    seen.images = [...document.images].filter(i => i.naturalWidth > 0).length;
    try {
        const up = new Uint8Array(3000000).fill(65);
        seen.up = await (await fetch('/length', {method: 'POST', body: up}))
            .text();
        seen.down = (await (await fetch('/big')).arrayBuffer()).byteLength;
    } catch (e) { seen.errors.push(String(e)); }
    seen.protocols = performance.getEntries()
        .map(e => e.nextHopProtocol).filter(p => p);
    await fetch('/report', {method: 'POST', body: JSON.stringify(seen)});
};
</script>
END

sub answer($c, $type, $body)
{
    $c->put("HTTP/1.1 200 OK\r\nContent-Type: $type\r\nCache-Control: no-store"
            . "\r\nContent-Length: " . length($body) . "\r\n\r\n$body");
}

my $o = origin(sub ($c) {
    while (my $r = $c->get_request) {
        my $path = $r->{target};
        if ($path eq '/') {
            answer($c, 'text/html', $page);
        } elsif ($path =~ /^\/script/) {
            answer($c, 'text/javascript',
                'window.scripts = (window.scripts || 0) + 1;');
        } elsif ($path =~ /^\/image/) {
            answer($c, 'image/svg+xml', "<svg xmlns='http://www.w3.org/2000/svg'"
                    . " width='9' height='9'/>");
        } elsif ($path eq '/length') {
            answer($c, 'text/plain', length $r->{body});
        } elsif ($path eq '/big') {
            answer($c, 'application/octet-stream', 'z' x 5_000_000);
        } elsif ($path eq '/report') {
            $c->note("report $r->{body}");
            answer($c, 'text/plain', 'thanks');
        } else {
            $c->put("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    }
}, tls => { certs()->{good}->%*, alpn => ['http/1.1'] });

my $w = Weir->start(args => ['-v'], set => [ 'proxy.via=tester',
    'resolve.good.test=127.0.0.1:' . $o->port,
    'upstream.upstream_ca=' . certs()->{ca}{cert} ]);

# Chromium trusts what is in the NSS database of its HOME.
my $home = scratch('browser', 1);
mkdir "$home/.pki";
mkdir "$home/.pki/nssdb";
my @db = ('-d', "sql:$home/.pki/nssdb");
run([ 'certutil', @db, '-N', '--empty-password' ]);
is run([ 'certutil', @db, '-A', '-t', 'C,,', '-n', 'weir', '-i', $w->ca ])
    ->{exit}, 0, 'an NSS database';
my $browser = start_process([ 'chromium', qw(--headless --no-sandbox
    --disable-gpu --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage
    --enable-quic --no-proxy-server --remote-debugging-port=0
    --origin-to-force-quic-on=*), '--host-resolver-rules=MAP * 127.0.0.1:'
        . $w->port, '--user-data-dir=' . scratch('profile', 1),
    'https://good.test/' ], env => { HOME => $home });
my $text = eval {
    wait_for('the report', sub { $o->notes =~ /^report (.*)/m && $1 }, 90);
};
diag $@, slurp($browser->{err}), substr $w->log, -3000 if !$text;
my $seen = $text ? decode_json($text) : {};
is_deeply $seen->{errors}, [], 'the page met no error';
is $seen->{scripts}, ASSETS / 2, 'its scripts ran';
is $seen->{images}, ASSETS / 2, 'its images were shown';
is $seen->{up}, 3_000_000, '3 MB were posted';
is $seen->{down}, 5_000_000, '5 MB were fetched';
cmp_ok scalar(($seen->{protocols} // [])->@*), '>', ASSETS, 'of all parts';
is_deeply [ grep { $_ ne 'h3' } ($seen->{protocols} // [])->@* ], [],
    'each says that it came by h3';
stop_process($browser);
my $n = () = $w->log =~ m{ exchange .*version=http/3 .*target=https://good\.test/(?:script|image)\d+\.\w+ status=200 }g;
is $n, ASSETS, 'the log has them, in HTTP/3';
like $w->wait_log(qr{ close .*spoke=\S*http/3}), qr/client=/,
    'the connection has its line';
$w->stop;
done_testing;
