#!/usr/bin/perl
# HTTP/3 with origins that others wrote: gtlsserver, which has no TCP at all,
# and caddy, which says by Alt-Svc where it is.
use v5.36;
use lib 't/lib';
use Digest::SHA;
use Test::More;
use Ways;
use Weir;

my $certs = certs();
my $root  = scratch('root', 1);

spew("$root/small", 'a small file');
spew("$root/empty", '');
my $bytes = '';
$bytes .= pack 'N256', map { ($_ * 2654435761) & 0xffffffff } $_ .. $_ + 255
    for 0 .. 19_999;
spew("$root/big", $bytes); # 20 MB
my $sum = Digest::SHA::sha256_hex($bytes);

sub weir_with(@set)
{
    return Weir->start(args => ['-v'], set => [
        "upstream.upstream_ca=$certs->{ca}{cert}", @set ]);
}

# curl by HTTP/1.1 and HTTP/2, intercepted.
sub fetch($w, @args)
{
    return curl($w, '--cacert', $w->ca, @args);
}

sub sum_of($file)
{
    return Digest::SHA->new(256)->addfile($file)->hexdigest;
}

sub files($w, $host)
{
    for my $v ('--http1.1', '--http2') {
        my $r = fetch($w, $v, "https://$host/small");
        is $r->{out}, 'a small file', "$host, $v: a file";
        $r = fetch($w, $v, '-I', "https://$host/small");
        like $r->{out}, qr/^content-length: 12\r$/mi, 'HEAD';
        $r = fetch($w, $v, "https://$host/empty");
        is "$r->{code} $r->{out}", '200 ', 'an empty one';
        $r = fetch($w, $v, "https://$host/missing");
        is $r->{code}, 404, 'one that is missing';
        my $to = scratch('big');
        $r = fetch($w, $v, '-o', $to, "https://$host/big");
        is $r->{exit}, 0, 'a large one';
        is sum_of($to), $sum, 'whole';
        my @many = map { ('-o', "$to-$_", "https://$host/big?$_") } 1 .. 4;
        $r = fetch($w, $v, '-Z', @many);
        is join(' ', map { sum_of("$to-$_") } 1 .. 4),
            join(' ', ($sum) x 4), 'four at once';
    }
    unlike $w->log, qr{exchange .*target=https://\Q$host\E\S* .*origin_version=http/[12]},
        'all over HTTP/3';
}

{ # gtlsserver
    my $g = gtlsserver($root);
    my $w = weir_with("resolve.g.good.test=127.0.0.1:$g->{port}",
        'upstream.http3=g.good.test');
    files($w, 'g.good.test');
    my @urls = map { "https://g.good.test/small?$_" } 1 .. 200;
    my $r = fetch($w, '--http2', '-Z', @urls);
    is $r->{out}, 'a small file' x 200, '200 requests at once';
    my $n = () = $w->log =~ / session .*version=http\/3/g;
    is $n, 0, 'the connection stays for the next';
    stop_process($g, 'KILL');
    $r = fetch($w, 'https://g.good.test/small');
    is $r->{code}, 502, 'killed: 502';
    $w->stop;
}
{ # one that is slow to prove its address: Retry
    my $g = gtlsserver($root, args => ['-V']);
    my $w = weir_with("resolve.g.good.test=127.0.0.1:$g->{port}",
        'upstream.http3=g.good.test');
    is fetch($w, 'https://g.good.test/small')->{out}, 'a small file', 'Retry';
    $w->stop;
}
{ # a certificate that is not the origin's
    my $g = gtlsserver($root, cert => $certs->{wrong});
    my $w = weir_with("resolve.g.good.test=127.0.0.1:$g->{port}",
        'upstream.http3=g.good.test');
    my $r = fetch($w, 'https://g.good.test/small');
    is $r->{code}, 502, 'a certificate of somebody else: 502';
    like $r->{out}, qr/certificate is for another host name/, 'which says so';
    $w->stop;
}
{ # killed while it sends
    my $g = gtlsserver($root);
    my $w = weir_with("resolve.g.good.test=127.0.0.1:$g->{port}",
        'upstream.http3=g.good.test');
    my $c = $w->client;
    $c->put("GET https://g.good.test/big HTTP/1.1\r\nHost: g\r\n\r\n");
    my $head = $c->get_head;
    $c->get(100_000);
    stop_process($g, 'KILL');
    my $got = 100_000 + length $c->get_eof;
    cmp_ok $got, '<', length $bytes, 'killed within an answer: it is cut';
    like $w->wait_log(qr{exchange .*/big }), qr/by=origin/, 'by the origin';
    $w->stop;
}
SKIP: {
    skip 'no caddy here', 1 if !have('caddy');
    my $c = caddy($root, name => 'c.good.test');
    my $w = weir_with("resolve.c.good.test=127.0.0.1:$c->{port}",
        'upstream.http3=c.good.test');
    files($w, 'c.good.test');
    like fetch($w, '--http1.1', '-T', "$root/big", 'https://c.good.test/small')
        ->{code}, qr/^(?:200|405)$/, 'an upload, which it does not look at';
    $w->stop;
    $w = weir_with('resolve.c.good.test=127.0.0.1', 'upstream.http3=auto');
    my $url = "https://c.good.test:$c->{port}/small";
    is fetch($w, $url)->{out}, 'a small file', 'auto: first over TCP';
    ok wait_for('HTTP/3', sub { # which TCP may outrun on a busy machine
        is fetch($w, $url)->{out}, 'a small file', 'then';
        return $w->log =~ /exchange .*origin_version=http\/3 /;
    }), 'by HTTP/3';
    unlike fetch($w, '-i', $url)->{out}, qr/^alt-svc:/mi,
        'of which the client hears nothing';
    $w->stop;
}
done_testing;
