/* Read or skip the Huffman codes of a baseline JPEG's scan, faster than libjpeg-turbo.
 *
 * A lookup of the next LOOK bits gives two codes at once (ITU-T T.81, annex F.2.2), since each lookup depends on the one
 * before. Anything unusual (a code that doesn't exist, a coefficient beyond the 64th) is reported to the caller, which lets
 * libjpeg-turbo decide. Nothing here allocates memory or uses files or Python.
 */

#include <stdint.h>
#include <string.h>

#define LOOK 10 /* bits; a table takes 8 KB, and those for luma and chroma fit into the L1 cache */
#define LONGEST_CODE 16 /* bits */
#define LAST 127        /* beyond the end of a block: all further coefficients are zero */
#define MOST_MCU_BYTES 2560 /* 10 blocks of 64 codes of at most 31 bits, rounded up */

/* An entry: bits 0-5 are the length of code and coefficient together, 6-9 of the coefficient, 10-14 of the code, 15-21 how
 * far to move in the block. 0: there is no such code, or it is longer than LOOK. */
#define ENTRY(code, size, advance) \
  ((uint32_t)((code) + (size)) | (uint32_t)(size) << 6 | (uint32_t)(code) << 10 | (uint32_t)(advance) << 15)
#define LENGTH(entry) ((entry)&63)
#define SIZE(entry) ((entry) >> 6 & 15)
#define CODE(entry) ((entry) >> 10 & 31)
#define ADVANCE(entry) ((entry) >> 15)

/* Two entries, the first in the upper half. The second is 0 if the table lacks it; its length is that of both. */
#define PAIR(first, second) ((uint64_t)(first) << 32 | ((second) + LENGTH(first)))
#define FIRST(pair) ((uint32_t)((pair) >> 32))
#define SECOND(pair) ((uint32_t)(pair))

typedef struct {
  uint64_t look[1 << LOOK];       /* pairs, by the next bits; single entries for DC */
  int32_t past[LONGEST_CODE + 1]; /* by length: the first code too large for it, as 16 bits */
  int32_t first[LONGEST_CODE + 1]; /* by length: what to add to a code to get its symbol's index */
  const unsigned char *symbols;
} HuffmanTable;

typedef struct {
  const unsigned char *at; /* the next bytes to take */
  uint64_t bits;           /* the next bits, left-aligned */
  unsigned int count;      /* number of valid bits */
} BitReader;

#define X16 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63
/* Zigzag order: a coefficient's place in its block (T.81, figure A.6). Two moves of LAST end in zeros. */
static const unsigned char PLACE[64 + 2 * 128] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16};

static inline uint32_t entry_of(unsigned int symbol, unsigned int code_length, int is_dc) {
  unsigned int run = is_dc ? 0 : symbol >> 4, size = symbol & 15;
  return ENTRY(code_length, size, size || is_dc ? run + 1 : run == 15 ? 16 : LAST);
}

/* Fill `table` from a JPEG's table: the number of codes of each length from 1 bit, and their symbols. Returns success. */
static int fill_table(HuffmanTable *table, const unsigned char *counts, const unsigned char *symbols, int is_dc) {
  uint32_t entries[1 << LOOK], code = 0;
  unsigned int number = 0, at = 0; /* index of the symbol; index in the lookup */
  table->symbols = symbols;
  for (unsigned int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->first[length] = (int32_t)number - (int32_t)code;
    for (unsigned int end = number + counts[length - 1]; number < end; number++, code++) {
      if (code >> length || number >= 256 || (is_dc && symbols[number] > 15)) return 0;
      if (length > LOOK) continue;
      uint32_t entry = entry_of(symbols[number], length, is_dc);
      for (unsigned int end_at = at + (1u << (LOOK - length)); at < end_at;) entries[at++] = entry;
    }
    table->past[length] = (int32_t)(code << (LONGEST_CODE - length));
  }
  memset(entries + at, 0, sizeof entries - at * sizeof *entries);
  for (at = 0; at < 1 << LOOK; at++) {
    uint32_t entry = entries[at], second = entries[at << LENGTH(entry) & ((1 << LOOK) - 1)];
    uint32_t is_known = entry && !is_dc && ADVANCE(entry) < LAST && LENGTH(entry) + CODE(second) <= LOOK;
    table->look[at] = PAIR(entry, second & -is_known);
  }
  return 1;
}

/* At least 56 bits: two lookups, or a long code. Reads 8 bytes at `at`. */
static inline void refill(BitReader *reader) {
  uint64_t next;
  memcpy(&next, reader->at, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  next = __builtin_bswap64(next);
#endif
  reader->bits |= next >> reader->count;
  reader->at += (63 - reader->count) >> 3;
  reader->count |= 56;
}

static inline void consume(BitReader *reader, unsigned int count) { reader->bits <<= count, reader->count -= count; }

/* The entry of a single code longer than LOOK; 0 if there is no such code. */
static __attribute__((noinline)) uint64_t long_pair(uint64_t bits, const HuffmanTable *table, int is_dc) {
  int32_t next = (int32_t)(bits >> (64 - LONGEST_CODE));
  for (unsigned int length = LOOK + 1; length <= LONGEST_CODE; length++)
    if (next < table->past[length]) {
      unsigned char symbol = table->symbols[table->first[length] + (next >> (LONGEST_CODE - length))];
      return PAIR(entry_of(symbol, length, is_dc), 0);
    }
  return 0;
}

/* The value of the `size` bits after the first `before` (T.81, table F.1: it is negative if the upper bit is 0). */
static inline int coefficient(uint64_t bits, unsigned int before, unsigned int size) {
  uint64_t rest = bits << before, negative = (uint64_t)((int64_t)~rest >> 63);
  return (int)(((rest ^ negative) >> 1 >> (63 - size) ^ negative) - negative);
}

/* Read a block of 64 coefficients; in natural order into `block`, which must be zero, unless it is NULL. `previous` is the
 * component's last DC coefficient. Returns whether the data were valid. */
static inline __attribute__((always_inline)) int read_block(BitReader *reader, const HuffmanTable *dc, const HuffmanTable *ac,
                                                            int *previous, short *block) {
  refill(reader);
  uint64_t pair = dc->look[reader->bits >> (64 - LOOK)];
  if (__builtin_expect(!pair, 0) && !(pair = long_pair(reader->bits, dc, 1))) return 0;
  /* unsigned, as damaged data may overflow */
  *previous = (int)((unsigned int)*previous + (unsigned int)coefficient(reader->bits, CODE(FIRST(pair)), SIZE(FIRST(pair))));
  consume(reader, LENGTH(pair));
  if (block) block[0] = (short)*previous;

  unsigned int place = 1, end = 0; /* after the coefficient read last; after the pair */
  for (int turn = 0; end < 64; turn ^= 1, place = end) {
    if (!turn) refill(reader);
    pair = ac->look[reader->bits >> (64 - LOOK)];
    if (__builtin_expect(!pair, 0)) {
      refill(reader);
      if (!(pair = long_pair(reader->bits, ac, 0))) return 0;
    }
    place += ADVANCE(FIRST(pair));
    end = place + ADVANCE(SECOND(pair));
    if (__builtin_expect(place == 64, 0)) { /* the block is full: the next bits belong to the next block */
      if (block) block[63] = (short)coefficient(reader->bits, CODE(FIRST(pair)), SIZE(FIRST(pair)));
      consume(reader, LENGTH(FIRST(pair)));
      return 1;
    }
    if (block) { /* a second entry that is unknown or not a coefficient is 0: the first overwrites it, or it stays 0 */
      block[PLACE[end - 1]] = (short)coefficient(reader->bits, LENGTH(pair) - SIZE(SECOND(pair)), SIZE(SECOND(pair)));
      block[PLACE[place - 1]] = (short)coefficient(reader->bits, CODE(FIRST(pair)), SIZE(FIRST(pair)));
    }
    consume(reader, LENGTH(pair));
  }
  return end == 64 || end - LAST < 64; /* else there was a coefficient beyond the 64th before the end */
}
