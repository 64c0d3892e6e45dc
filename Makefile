# weir: make run builds it and starts it; make help lists the rest.
#
# Every flavour has its own directory, named by B, so that they never mix.
# pkg-config is asked when a recipe runs, not when this file is read: on a
# fresh system `make run` installs it first.

B         = build
CC        = gcc
PREFIX    = /usr/local
DESTDIR   =
FUZZ_S    = 60
J         = 4
SAN       =
LIBS      = gnutls libnghttp2 inih libngtcp2 libngtcp2_crypto_gnutls \
            libnghttp3

# ---- packages: this is their one place ------------------------------------
# NAME>=VERSION: an older one will not do; NAME?: not every suite has it.
PKG_RUN   = gcc libc6-dev make pkgconf ca-certificates \
            libgnutls28-dev libnghttp2-dev libinih-dev libngtcp2-dev>=1.0 \
            libngtcp2-crypto-gnutls-dev>=1.0 libnghttp3-dev>=1.0
PKG_TEST  = $(PKG_RUN) perl libio-socket-ssl-perl curl openssl socat nginx \
            gnutls-bin chromium libnss3-tools util-linux iproute2 \
            squid-openssl tinyproxy microsocks dante-server? nghttp2-proxy \
            nghttp2-server nghttp2-client openssh-client openssh-server \
            ngtcp2-client>=1.0 ngtcp2-server>=1.0 caddy firefox-esr \
            libnss-wrapper
PKG_BESIDE = curl>=8.1 libcurl4>=8.1
PKG_FUZZ  = $(PKG_RUN) clang
PKG_LINT  = $(PKG_RUN) clang-tidy cppcheck clang-format
PKG_BENCH = $(PKG_RUN) perl squid-openssl haproxy tinyproxy mitmproxy nginx \
            dante-server? sslsplit hitch nghttp2-proxy nghttp2-server \
            nghttp2-client ngtcp2-client>=1.0 caddy

# ---- what is built --------------------------------------------------------
CFLAGS    = -O2 -g
BASE      = -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -pthread -I.
CFLAGS_L  = $(shell pkg-config --cflags $(LIBS))
LDLIBS_L  = $(shell pkg-config --libs $(LIBS)) -pthread

OBJ       = $(patsubst %.c,$(B)/%.o,$(wildcard *.c))
ROOMS     = $(filter-out $(B)/proxy.o,$(OBJ))
UNITS     = $(patsubst t/%.c,$(B)/t/%,$(wildcard t/*.c))
FUZZERS   = $(patsubst t/fuzz/%.c,%,$(wildcard t/fuzz/*.c))
C_FILES   = $(wildcard *.c *.h t/*.c t/*.h t/lib/*.c t/fuzz/*.c t/fuzz/*.h bench/*.c)

SAN_asan  = -fsanitize=address,undefined -fno-sanitize-recover=all \
            -fno-omit-frame-pointer -O1
SAN_tsan  = -fsanitize=thread -fno-omit-frame-pointer -O1
SAN_fuzz  = -fsanitize=fuzzer-no-link,address,undefined \
            -fno-sanitize-recover=all -O1
# An exit code of its own, so that no test takes a report for an answer.
export ASAN_OPTIONS  = detect_leaks=1:halt_on_error=1:exitcode=99
export UBSAN_OPTIONS = print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS  = halt_on_error=1:second_deadlock_stack=1:exitcode=99

.PHONY: all run tools test check browsers matrix asan tsan fuzz fuzz-all bench \
        lint install uninstall clean help
.SECONDARY:
.DELETE_ON_ERROR:

all: $(B)/weir

$(B)/weir: $(OBJ)
	$(CC) $(CFLAGS) $(SAN) $(LDFLAGS) -o $@ $(OBJ) $(LDLIBS_L)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS_L) $(CFLAGS) $(SAN) -MMD -MP -c -o $@ $<

$(UNITS): $(B)/t/%: $(B)/t/%.o $(ROOMS)
	$(CC) $(CFLAGS) $(SAN) $(LDFLAGS) -o $@ $< $(ROOMS) $(LDLIBS_L)

$(B)/fuzz-%: $(B)/t/fuzz/%.o $(ROOMS)
	$(CC) $(CFLAGS) $(SAN) -fsanitize=fuzzer $(LDFLAGS) -o $@ $< $(ROOMS) \
	    $(LDLIBS_L)

# QUIC for the tests that speak HTTP/3 themselves.
$(B)/quicwire: t/lib/quicwire.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -o $@ $< -lngtcp2_crypto_gnutls -lngtcp2 -lgnutls

# ---- to run it, to try it ---------------------------------------------------
need = @t/packages $(foreach p,$(1),'$(p)')

run:
	$(call need,$(PKG_RUN))
	@$(MAKE) --no-print-directory all
	@exec $(B)/weir -c proxy.ini $(ARGS)

tools: # what the tests need of the system
	$(call need,$(PKG_TEST))
	@t/packages --beside build/beside $(PKG_BESIDE:%='%')

test: tools
	@$(MAKE) --no-print-directory check

check: $(B)/weir $(B)/quicwire $(UNITS)
	@rm -f .prove
	WEIR='$(abspath $(B))/weir' $(RUNNER) prove -It/lib --timer -j$(J) \
	    --state=save $(UNITS) $(or $(T),$(wildcard t/*.t)) || \
	{ echo 'what failed is run again, alone:'; WEIR='$(abspath $(B))/weir' \
	    $(RUNNER) prove -It/lib --timer --state=failed,save; }

# What only a browser can tell; too heavy for every run.
browsers: tools
	@$(MAKE) --no-print-directory all
	WEIR='$(abspath $(B))/weir' prove -It/lib --timer t/browsers

# The table of which HTTP versions go together, from the test of it.
matrix: $(B)/weir $(B)/quicwire
	MATRIX=doc/matrix.md WEIR='$(abspath $(B))/weir' prove -It/lib t/matrix.t

# The browser has its run in `check`; instrumented, weir is no match for it.
asan tsan: T = $(filter-out t/chromium.t,$(wildcard t/*.t))
# ThreadSanitizer of Debian 12 dies of much address randomisation.
tsan: RUNNER = $(shell setarch -R true 2>/dev/null && echo setarch -R)
asan tsan: tools
	$(MAKE) B=build-$@ SAN='$(SAN_$@)' RUNNER='$(RUNNER)' \
	    T='$(T)' check

fuzz:
	$(call need,$(PKG_FUZZ))
	$(MAKE) B=build-fuzz CC=clang SAN='$(SAN_fuzz)' fuzz-all

fuzz-all: $(FUZZERS:%=$(B)/fuzz-%)
	@for f in $(FUZZERS); do \
	    echo "fuzz $$f"; mkdir -p $(B)/corpus/$$f && \
	    $(B)/fuzz-$$f -max_total_time=$(FUZZ_S) -timeout=10 -verbosity=0 \
	        -print_final_stats=1 -artifact_prefix=$(B)/$$f- \
	        $(B)/corpus/$$f t/fuzz/seeds/$$f > $(B)/fuzz-$$f.log 2>&1 || \
	        { cat $(B)/fuzz-$$f.log; exit 1; }; \
	    sed -n 's/^stat::number_of_executed_units: */    inputs /p' \
	        $(B)/fuzz-$$f.log; \
	done

bench:
	$(call need,$(PKG_BENCH))
	@$(MAKE) --no-print-directory all
	WEIR='$(abspath $(B))/weir' bench/run

lint:
	$(call need,$(PKG_LINT))
	clang-format --dry-run -Werror $(C_FILES)
	cppcheck -q --std=c11 --error-exitcode=1 --inline-suppr \
	    --enable=warning,performance,portability \
	    --suppress=missingIncludeSystem --suppress=readdirCalled \
	    '-DTAILQ_FOREACH(v,h,f)=while((v=(h)->tqh_first))' \
	    -D_GNU_SOURCE -I. $(wildcard *.c)
	clang-tidy --quiet $(wildcard *.c t/*.c t/fuzz/*.c) -- $(BASE) $(CFLAGS_L)

# ---- to have it on the system -------------------------------------------------
# /etc is where weir looks; under any other prefix nothing leaves the prefix.
ETC       = $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
BIN_DIR   = $(DESTDIR)$(PREFIX)/bin
MAN_DIR   = $(DESTDIR)$(PREFIX)/share/man
UNIT_DIR  = $(DESTDIR)$(PREFIX)/lib/systemd/system
INI       = $(DESTDIR)$(ETC)/weir/proxy.ini

install: $(B)/weir
	install -D -m 755 $(B)/weir $(BIN_DIR)/weir
	install -D -m 644 doc/weir.8 $(MAN_DIR)/man8/weir.8
	install -D -m 644 doc/weir.ini.5 $(MAN_DIR)/man5/weir.ini.5
	sed -e 's|@BIN@|$(PREFIX)/bin|g' -e 's|@ETC@|$(ETC)|g' \
	    doc/weir.service.in > $(B)/weir.service
	install -D -m 644 $(B)/weir.service $(UNIT_DIR)/weir.service
	[ -e $(INI) ] || install -D -m 644 proxy.ini $(INI)

uninstall: # an ini that somebody changed stays
	rm -f $(BIN_DIR)/weir $(MAN_DIR)/man8/weir.8 \
	    $(MAN_DIR)/man5/weir.ini.5 $(UNIT_DIR)/weir.service
	if cmp -s proxy.ini $(INI); then rm -f $(INI); fi
	if [ -d $(dir $(INI)) ]; then \
	    rmdir --ignore-fail-on-non-empty $(dir $(INI)); fi

clean:
	rm -rf build build-asan build-tsan build-fuzz

help:
	@echo 'make            build $(B)/weir'
	@echo 'make run        install what is missing, build, start with proxy.ini'
	@echo 'make test       install what the tests need, build, run them all'
	@echo 'make check      the same without installing; T=t/x.t for one script'
	@echo 'make asan tsan  the tests under sanitizers'
	@echo 'make fuzz       each parser for FUZZ_S=$(FUZZ_S) seconds'
	@echo 'make bench      side by side with other proxies'
	@echo 'make browsers   Chromium and Firefox with HTTP/3'
	@echo 'make matrix     doc/matrix.md, from t/matrix.t'
	@echo 'make lint       clang-format, cppcheck, clang-tidy'
	@echo 'make install    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR); also uninstall'
	@echo 'make clean      remove what was built'

-include $(wildcard $(B)/*.d $(B)/t/*.d $(B)/t/fuzz/*.d)
