#!/usr/bin/perl
# Firefox as a client of an HTTP/3 proxy: an extension tells it to use weir so
# (type "masque").  What goes over TCP comes as CONNECT, HTTP/3 as connect-udp;
# inside of both weir intercepts, unless told not to.
use v5.36;
use lib 't/lib';
use Marionette;
use Test::More;
use Ways;
use Weir;

my $certs = certs();
my $root  = scratch('root', 1);
chmod 0755, $root;
spew("$root/page.html", '<!doctype html><meta charset=utf-8><title>page</title>'
        . '<link rel=icon href="data:,"><p id=p>from the origin</p>'
        . join '', map { "<img src=image$_.svg>" } 1 .. 10);
spew("$root/image$_.svg",
    "<svg xmlns='http://www.w3.org/2000/svg' width='$_' height='9'/>")
    for 1 .. 10;
spew("$root/big", 'z' x 5_000_000);

# The same site under three names.
my %site = map { $_ => caddy($root, name => "$_.good.test") }
    qw(tcp udp opaque);
my %at = map { $_ => "$_.good.test:$site{$_}{port}" } keys %site;
my $w = Weir->start(args => ['-v'], set => [
    "upstream.upstream_ca=$certs->{ca}{cert}", 'proxy.via=tester',
    map({ "resolve.$_.good.test=127.0.0.1" } keys %site),
    'intercept.except=opaque.good.test', 'http3.idle_s=5' ]);

# Firefox takes HTTP/3 where it was told that there is some.
my $firefox = Marionette->start(trust => [ $w->ca, $certs->{ca}{cert} ],
    prefs => {
        'network.http.http3.disable_when_third_party_roots_found' => \0,
        'network.dns.forceResolve' => '127.0.0.1',
        'network.http.http3.alt-svc-mapping-for-testing' => join(',', map {
            "$_.good.test;h3=:$site{$_}{port}"
        } qw(udp opaque)),
    });
$firefox->extend(<<"END", 'proxy', '<all_urls>');
browser.proxy.onRequest.addListener(() => ({
    type: 'masque', host: 'localhost', port: ${\ $w->port },
    masqueTemplate: '/.well-known/masque/udp/{target_host}/{target_port}/',
}), { urls: ['https://*.good.test/*'] });
END

my $look = <<'END';
const done = arguments[arguments.length - 1];
(async () => {
    const big = (await (await fetch('/big?' + Math.random())).arrayBuffer());
    done({
        text: document.getElementById('p').textContent,
        images: [...document.images].filter(i => i.naturalWidth > 0).length,
        big: big.byteLength,
        page: performance.getEntriesByType('navigation')[0].nextHopProtocol,
        rest: performance.getEntriesByType('resource')
            .map(e => e.nextHopProtocol),
    });
})().catch(e => done({ error: String(e) }));
END

# A page, and what it found.  The first visit may be in another version, until
# the browser has its way to HTTP/3.
sub look($name, $protocol)
{
    my $seen;
    wait_for("$name in $protocol", sub {
        eval { $firefox->visit("https://$at{$name}/page.html?" . rand); 1 }
            or do { diag $@; return 0 };
        $seen = eval { $firefox->ask($look) } // do { diag $@; {} };
        return ($seen->{page} // '') eq $protocol;
    }, 60);
    is $seen->{text}, 'from the origin', "$name: the page";
    is $seen->{images}, 10, 'its images';
    is $seen->{big}, 5_000_000, '5 MB';
    is $seen->{page}, $protocol, "over $protocol";
    return $seen;
}

note '---- CONNECT';
look('tcp', 'h2');
like $w->wait_log(qr{exchange .*target=https://\Q$at{tcp}\E/page}),
    qr/version=http\/2/, 'intercepted inside of the tunnel, in HTTP/2';
note '---- connect-udp, intercepted';
look('udp', 'h3');
like $w->wait_log(qr{exchange .*version=http/3 .*target=https://\Q$at{udp}\E/page}),
    qr/stream=\d+/, 'its HTTP/3 is in the log, request by request';
note '---- connect-udp, left alone';
look('opaque', 'h3');
unlike $w->log, qr{target=https://\Q$at{opaque}\E}, 'no request is in the log';
like slurp($site{opaque}{log}), qr{"proto":"HTTP/3}, 'the origin has seen HTTP/3';

$firefox->stop;
like $w->wait_log(qr{ tunnel .*target=\Q$at{opaque}\E}, 90), qr/up=\d+ down=\d{7}/,
    'the tunnel has its line';
ok $w->wait_log(qr{ close .*spoke=http/3}, 90), 'the browser spoke HTTP/3 with weir';
$w->stop;
done_testing;
