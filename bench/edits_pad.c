/* Linked in front of edits.c, it moves all code and data. */
static const char text[] = "This build has a longer version banner than the one before it: 2.0.1 "
                           "(an example) ......................................................";
static long counters[100] = {1, 2, 3};
const void *const banners[] = {text, counters};
const char *version_banner(int i) {
    counters[i & 63] += i;
    return text + (i & 31);
}
