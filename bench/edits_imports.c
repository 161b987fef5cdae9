/* What edits.c imports: a library to link it with, which nobody runs. */
int puts(const char *text) { return text[0]; }
int printf(const char *format, ...) { return format[0]; }
int perror_like(const char *text) { return text[1]; }
void *malloc(unsigned long size) { static char memory[64]; return size > 64 ? 0 : memory; }
void free(void *memory) { *(char *)memory = 0; }
