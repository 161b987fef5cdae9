"""A C program before and after edits that change little but the registers of instructions."""

# Each function has one edit, E(old, new), that hardly changes the shapes of the instructions.
EDITS = r"""
#define A __attribute__((noinline))
#define E(old, new) EDIT
volatile long long sink; volatile double real; volatile float narrow;
typedef long long big;
A big width(big x, big y) { sink = y; return E(x, (unsigned)x); }
A big sign(big x, big y) { sink = y; return E(x, (int)x); }
A big sum(big x, big y) { sink = y; return E(x + y, (unsigned)(x + y)); }
A int which(int x, int y, int z) { sink = x; return E(y, z); }
A double chosen(double x, double y, double z) { real = x; return E(y, z); }
A double difference(double x, double y, double z) { real = x; return E(y - z, z - y); }
A int minus(int x, int y, int z) { sink = x; return E(y - z, z - y); }
A void take(double a, double b, int c) { real = a - 2 * b; sink = c; }
A void arguments(double x, double y, int c) { real = 1; take(E(x, y), E(y, x), c); sink = 2; }
A void integers(int c, int d) { sink = 1; take(1, 2, E(c, d)); sink = 2; }
A void tail(int c, int d) { sink = 1; E(integers, other)(c, d); }
A void other(int c, int d) { sink = 3; take(1, 2, c * d); sink = 4; }
A int loads(int *p, short x) { return *E((int *), (short *))p + x; }
A int order(int *p, int *q) { E(*p = 1; *q = 2, *q = 2; *p = 1); return *p; }
A int reads(volatile int *p) {
    int a, b;
    E(a = p[0]; b = p[1], b = p[1]; a = p[0]);
    return a - 3 * b;
}
A int loop(int n, int m) { int s = 0; for (int i = 0; i < E(n, m); i++) s += m ^ sink; return s; }
A double mix(double x, double y, int n) { while (n--) real = E(x, y); return x; }
A float single(float x, float y) { narrow = y; return E(x, y); }
A int turned(int x, int y) { sink = 0; return E(x < y, y < x) ? x * 3 : y * 5; }
A int unsigned_(unsigned char x, unsigned char y) { sink = x; return E(x, y) + 1; }
void begin(void) {
    int b[4] = {1};
    for (;;) {
        sink = width(sink, 2) + sign(1, sink) + sum(sink, 3) + which(sink, sink, sink);
        real = chosen(real, real, real) + difference(real, real, 1) + single(real, narrow);
        arguments(real, real, sink);
        integers(sink, sink);
        tail(sink, sink);
        other(sink, sink);
        sink = loads(b, sink) + order(b, b + 1) + loop(sink, sink) + turned(sink, sink);
        real = mix(real, real, sink);
        sink = minus(sink, sink, sink) + unsigned_(sink, sink) + reads(b);
    }
}
"""
SAME = {"take", "other", "begin"}
