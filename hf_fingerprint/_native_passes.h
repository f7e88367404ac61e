/* The passes of _native.c, compiled for one width of vectors. `NAME` names them for it. */

#define MASK_OF(bytes) ((SPLAT(LOAD(uint16_unaligned, bytes)) & LANE_BITS) != 0)

INLINE int NAME(bit)(const uint8_t *packed, size_t i) { return packed[i / 8] >> (7 - i % 8) & 1; }

/* ---- codewords ---- */

static void NAME(pack_biased)(const uint16_t *stream, const uint16_t *thresholds, uint8_t *out, size_t length) {
    const uint64_t gather = 0x8040201008040201u; /* bit 0 of eight bytes to the bits of one, the first highest */
    uint64_t bytes[4];
    size_t i = 0;
    for (; i + 32 <= length; i += 32) {
        vshort below = (vshort)(LOAD(vshort, stream + i) < LOAD(vshort, thresholds + i)) & 1;
        vbyte narrow = __builtin_convertvector(below, vbyte);
        memcpy(bytes, &narrow, sizeof bytes);
        for (int k = 0; k < 4; k++) out[i / 8 + k] = (uint8_t)(bytes[k] * gather >> 56);
    }
    for (; i < length; i += 8) {
        uint8_t found = 0;
        for (int k = 0; k < 8; k++) found = (uint8_t)(found << 1 | (stream[i + k] < thresholds[i + k]));
        out[i / 8] = found;
    }
}

/* Adds the weights of set bits to four rows' sums: at most CHUNK of them in single precision, the rest in double. */
static void NAME(score_rows)(const uint8_t *const packed[ROWS], const float *weights, size_t length, double *sums) {
    for (size_t start = 0; start < length; start += CHUNK) {
        size_t stop = start + CHUNK < length ? start + CHUNK : length, i = start;
        vfloat found[ROWS] = {{0}, {0}, {0}, {0}};
        for (; i + LANES <= stop; i += LANES) {
            vint weight = LOAD(vint, weights + i);
            for (int row = 0; row < ROWS; row++) found[row] += (vfloat)(weight & MASK_OF(packed[row] + i / 8));
        }
        for (int row = 0; row < ROWS; row++) {
            for (int lane = 0; lane < LANES; lane++) sums[row] += found[row][lane];
            for (size_t k = i; k < stop; k++) sums[row] += NAME(bit)(packed[row], k) ? weights[k] : 0;
        }
    }
}

/* ---- weights ---- */

/* The normalized and clipped difference of some weights of one row, 0 where a weight is dropped. */
INLINE void NAME(subtract)(const float *theirs, const float *ours, float inverse, float clip, size_t count, float *out,
                           vfloat *power, vfloat *product, vfloat *square, vint *dropped, totals *total) {
    const vfloat high = SPLAT_FLOAT(clip), low = -high, unit = SPLAT_FLOAT(inverse);
    const vfloat largest = SPLAT_FLOAT(3.4028234663852886e38f);
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vfloat t = LOAD(vfloat, theirs + i), o = LOAD(vfloat, ours + i), d = (t - o) * unit;
        vint kept = (t != 0) & (t <= largest) & (t >= -largest);
        d = SELECT(d > high, high, d);
        d = SELECT(d < low, low, d);
        d = (vfloat)((vint)d & kept);
        *(vfloat *)(out + i) = d;
        *power += d * d;
        *product += (vfloat)((vint)t & kept) * o;
        *square += (vfloat)((vint)o & kept) * o;
        *dropped -= ~kept;
    }
    for (; i < count; i++) {
        float t = theirs[i], o = ours[i], d = (t - o) * inverse;
        int kept = t != 0 && t <= 3.4028234663852886e38f && t >= -3.4028234663852886e38f;
        d = d > clip ? clip : d;
        d = d < -clip ? -clip : d;
        out[i] = d = kept ? d : 0;
        total->power += (double)d * d;
        total->product += kept ? (double)t * o : 0;
        total->square += kept ? (double)o * o : 0;
        total->dropped += !kept;
    }
}

/* Adds values to consecutive positions, negated where their bit is set. */
INLINE void NAME(fold_signed)(const float *values, const uint8_t *signs, size_t count, float *out) {
    const vint top = SPLAT(INT32_MIN);
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        *(vfloat *)(out + i) += (vfloat)(LOAD(vint, values + i) ^ (MASK_OF(signs + i / 8) & top));
    for (; i < count; i++) out[i] += NAME(bit)(signs, i) ? -values[i] : values[i];
}

/* The same for positions that wrap, at a multiple of 8. */
static void NAME(fold_weights)(const float *values, const uint8_t *signs, size_t count, size_t position,
                               float *sums, size_t length) {
    for (size_t done = 0; done < count;) {
        size_t part = length - position < count - done ? length - position : count - done;
        NAME(fold_signed)(values + done, signs + done / 8, part, sums + position);
        done += part;
        position = 0;
    }
}

INLINE double NAME(sum_of)(vfloat values) {
    double found = 0;
    for (int lane = 0; lane < LANES; lane++) found += values[lane];
    return found;
}

/* Single precision from brain floats, or the same. */
INLINE const float *NAME(widen)(const uint8_t *raw, int is_half, size_t start, size_t count, float *buffer) {
    if (!is_half) return (const float *)raw + start;
    const uint16_t *halves = (const uint16_t *)raw + start;
    uint32_t *out = (uint32_t *)buffer;
    for (size_t i = 0; i < count; i++) out[i] = (uint32_t)halves[i] << 16;
    return buffer;
}

/* Adds the signed differences of whole rows to consecutive positions, from `position` on. */
static void NAME(read_weights)(const uint8_t *theirs, int their_half, const uint8_t *ours, int our_half,
                               const float *inverse, size_t columns, float clip, const uint8_t *signs, size_t count,
                               size_t position, float *sums, size_t length, totals *total) {
    float difference[CHUNK], their_buffer[CHUNK], our_buffer[CHUNK];
    size_t row = 0, column = 0;
    for (size_t start = 0; start < count; start += CHUNK) {
        size_t size = start + CHUNK < count ? CHUNK : count - start;
        const float *t = NAME(widen)(theirs, their_half, start, size, their_buffer);
        const float *o = NAME(widen)(ours, our_half, start, size, our_buffer);
        vfloat power = {0}, product = {0}, square = {0};
        vint dropped = {0};
        for (size_t done = 0; done < size;) {
            size_t part = columns - column < size - done ? columns - column : size - done;
            NAME(subtract)(t + done, o + done, inverse[row], clip, part, difference + done, &power, &product,
                           &square, &dropped, total);
            done += part;
            column += part;
            if (column == columns) row++, column = 0;
        }
        total->power += NAME(sum_of)(power);
        total->product += NAME(sum_of)(product);
        total->square += NAME(sum_of)(square);
        for (int lane = 0; lane < LANES; lane++) total->dropped += (uint64_t)dropped[lane];
        NAME(fold_weights)(difference, signs + start / 8, size, position, sums, length);
        position = (position + size) % length;
    }
}

/* Adds a signed amplitude to some weights of one row, of which the first has the sign number `first`. */
INLINE void NAME(mark)(float *values, size_t count, float amplitude, const uint8_t *signs, size_t first) {
    const vint top = SPLAT(INT32_MIN), size = (vint)SPLAT_FLOAT(amplitude);
    size_t i = 0;
    for (; i < count && (first + i) % 8; i++)
        values[i] += values[i] == 0 ? 0 : NAME(bit)(signs, first + i) ? -amplitude : amplitude;
    for (; i + LANES <= count; i += LANES) {
        vfloat value = LOAD(vfloat, values + i);
        vint added = size ^ (MASK_OF(signs + (first + i) / 8) & top);
        *(vfloat *)(values + i) = value + (vfloat)(added & (vint)(value != 0));
    }
    for (; i < count; i++) values[i] += values[i] == 0 ? 0 : NAME(bit)(signs, first + i) ? -amplitude : amplitude;
}

static void NAME(add_mark)(float *values, const float *amplitude, size_t rows, size_t columns,
                           const uint8_t *signs) {
    for (size_t row = 0; row < rows; row++)
        NAME(mark)(values + row * columns, columns, amplitude[row], signs, row * columns);
}

/* The same for brain floats, which are rounded up with the probability of the remainder. */
static void NAME(add_mark_half)(uint16_t *values, const float *amplitude, size_t rows, size_t columns,
                                const uint8_t *signs, const uint16_t *random) {
    float buffer[CHUNK];
    uint32_t *bits = (uint32_t *)buffer;
    for (size_t row = 0; row < rows; row++)
        for (size_t done = 0; done < columns; done += CHUNK) {
            size_t size = done + CHUNK < columns ? CHUNK : columns - done, first = row * columns + done;
            NAME(widen)((const uint8_t *)values, 1, first, size, buffer);
            NAME(mark)(buffer, size, amplitude[row], signs, first);
            for (size_t i = 0; i < size; i++) values[first + i] = (uint16_t)((bits[i] + random[first + i]) >> 16);
        }
}

#undef MASK_OF
