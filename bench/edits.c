/* A small program for bench/edits.py. It is built once as it is and once for each edit: -DEDIT=1 to
   -DEDIT=12 change one thing each, in the function that the comment names. Nothing of it is run. */

int puts(const char *text);
int printf(const char *format, ...);
void *malloc(unsigned long size);
void free(void *memory);
int perror_like(const char *text);

#define APART __attribute__((noinline))

struct record {
    int kind, size, used, limit;
    struct record *next;
    const char *name;
};

static const short primes[] = {2, 3, 5, 7, 11, 13, 17,
#if EDIT == 4 /* weigh: a table */
                               23,
#else
                               19,
#endif
                               29, 31, 37, 41, 43, 47, 53, 59};
int table_a[64] = {1, 2, 3}, table_b[64] = {4, 5, 6};
static int counters[32], total;
static const char *const names[] = {"zero", "one", "two", "three", "four", "five", "six", "seven"};
struct record root = {1, 2, 3, 4, 0, "root"};

APART int copy_unsafe(char *to, const char *from) {
    int i = 0;
    while ((to[i] = from[i]))
        i++;
    return i;
}

APART int copy_safe(char *to, const char *from) {
    int i = 0;
    while (i < 15 && (to[i] = from[i]))
        i++;
    to[i] = 0;
    return i;
}

APART int check(const char *text) {
    char buffer[16];
#if EDIT == 2 /* check: a callee */
    return copy_safe(buffer, text) + buffer[0];
#else
    return copy_unsafe(buffer, text) + buffer[0];
#endif
}

APART int look(int i) {
#if EDIT == 8 /* look: another table */
    return table_b[i & 63];
#else
    return table_a[i & 63];
#endif
}

APART int limit(int n) {
#if EDIT == 1 /* limit: a constant */
    if (n > (8 << 20))
#else
    if (n > (16 << 20))
#endif
        return -1;
    return n * 3;
}

APART int compare(const struct record *one, const struct record *other) {
#if EDIT == 3 /* compare: a comparison */
    if (one->size <= other->size)
#else
    if (one->size < other->size)
#endif
        return -1;
    return one->used - other->used;
}

APART int weigh(const int *values, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += values[i] * primes[i & 15];
    return sum;
}

APART void complain(int code) {
    if (code > 3)
#if EDIT == 5 /* complain: a string */
        puts("the file cannot be written");
#else
        puts("the file cannot be opened.");
#endif
    else
        printf("error %d\n", code);
}

APART int room(const struct record *r) {
#if EDIT == 6 /* room: a field's offset */
    return r->limit - r->size;
#else
    return r->limit - r->used;
#endif
}

APART int count(int i) {
#if EDIT == 7 /* count: one instruction more */
    counters[i & 31] += 5;
    total = (total + 3) ^ i;
#else
    counters[i & 31] += 5;
    total = total + 3;
#endif
    return counters[3] + total;
}

APART double scale(double x) {
#if EDIT == 9 /* scale: a constant in memory */
    return x * 3.14159265 + 2.71828;
#else
    return x * 3.14159 + 2.71828;
#endif
}

APART int choose(int i) {
    switch (i) {
#if EDIT == 10 /* choose: two cases change places */
    case 0: return limit(3);
    case 1: return count(i);
#else
    case 0: return count(i);
    case 1: return limit(3);
#endif
    case 2: return look(i) + 11;
    case 3: return 3 * check("three");
    case 4: complain(i); return 8;
    case 5: puts("five"); return 77;
    case 6: return room(&root) * 5;
    }
    return -1;
}

APART void *make(unsigned long size) {
    void *memory = malloc(size + 8);
    if (!memory) {
#if EDIT == 11 /* make: an import */
        perror_like("no memory");
#else
        puts("no memory");
#endif
        return 0;
    }
    return memory;
}

APART int walk(struct record *from) {
    int sum = 0;
    for (struct record *r = from ? from : &root; r; r = r->next) {
#if EDIT == 12 /* walk: a comparison more */
        if (r->kind == 7)
            continue;
#endif
        sum += r->size;
    }
    return sum;
}

/* Functions of the same code, told apart by their places in a table and by who calls them. */
#define GET(n) \
    APART int get##n(int *p) { return p[1] + 5; }
GET(0) GET(1) GET(2) GET(3) GET(4) GET(5)
int (*const getters[])(int *) = {get0, get1, get2, get3, get4, get5};
#define SET(n) \
    APART void set##n(int *p, int v) { p[2] = v; p[3] = 0; counters[7]++; }
SET(0) SET(1) SET(2)
APART void set_all(int *p) { set0(p, 1); set1(p + 4, 2); set2(p + 8, 3); }
APART void set_back(int *p) { set2(p, 1); set1(p + 4, 2); set0(p + 8, 3); }

APART int through(int i, int *p) { return getters[i & 3](p) + (names[i & 7][0] == 'z'); }

APART const char *name_of(int i) {
    printf("%s\n", names[i & 7]);
    return i < 0 ? root.name : names[i & 7];
}

int run(int n, char **arguments) {
    int some[16] = {n, n + 1};
    char buffer[64];
    set_all(some);
    set_back(some);
    copy_unsafe(buffer, "hello, all of you");
    copy_safe(buffer, name_of(n));
    some[4] = check(arguments[0]) + look(n) + limit(n) + compare(&root, root.next);
    some[5] = weigh(some, 16) + choose(n) + walk(&root) + (int)scale(n) + through(n, some);
    free(make(n));
    printf("%s %d %d\n", buffer, some[4], some[5]);
    return some[4] + room(&root);
}

void begin(void) {
    static char *none[2];
    for (;;)
        run(1, none);
}
