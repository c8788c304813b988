/* TV-L1 of one frame pair on one core: the steps of kernels.py, fused.
 *
 * An iteration is one sweep over the rows: as soon as row y of u is new, row y - 1 of p can follow, so every plane
 * is read and written once, and u is still in the first-level cache when p needs it. Loops run along x without
 * branches, for the compiler to vectorise. Sums have one order and nothing is contracted to fused operations, so that
 * every x86 processor computes the same bits. `SORT_5`, `MEDIAN_OF_SORTED_COLUMNS`, `MEDIAN` and `SOURCE` are put before
 * this text by build.py: the exchanges of the median's networks, from the definition that kernels.py uses, and a digest.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float float16 __attribute__((vector_size(64), aligned(4), may_alias));

#define EPSILON 1.1920929e-7f /* FLT_EPSILON, as OpenCV */
#define NO_GRADIENT 1e20f     /* kernels.py says why */
#define SUBPIXELS 32
#define ZEROS 4               /* border of the planes that are warped */
#define LANES 16              /* floats of the widest vector */

typedef struct {
    float theta, threshold, taut, still; /* threshold = lambda theta, taut = tau / theta, still = epsilon^2 */
    float step;                          /* of the pyramid */
    int32_t warps, inner, outer, median;
} Settings;

/* Every plane of a level has rows of `pitch` floats: the width and at least one more, rounded up to whole vectors.
 * What is beyond the width stays 0 in u, v and p throughout, so loops need no remainder and p[-1] is 0. */
typedef struct {
    int height, width, pitch;
    float *u[2];                         /* the flow: u and v */
    float *wx, *wy, *constant, *inverse;
    float *px[2], *py[2];                /* of u and of v; a row of zeros above */
    float *taut;                         /* one row: tau / theta, and 0 where there is no neighbour to the right */
    float4 *planes;                      /* (image, d/dx, d/dy, 0) of the second frame, with a border of zeros */
    float *padded;                       /* a plane with two more pixels on each side, for the median */
    float *rows;                         /* room for five rows of the median, six of the warp */
} Level;

static int at_most(int a, int b) { return a < b ? a : b; }
static int at_least(int a, int b) { return a > b ? a : b; }

/* ---- the iteration */

/* Not inlined: gcc forgets `restrict` when it inlines, and the loops are then not vectorised. */
#define ROW __attribute__((noinline))
#define ALIGNED(name) name = __builtin_assume_aligned(name, LANES * sizeof(float))

ROW static float update_u(int pitch, float theta, float threshold, const float *restrict wx, const float *restrict wy,
                      const float *restrict constant, const float *restrict inverse, const float *restrict px_u,
                      const float *restrict py_u, const float *restrict above_u, const float *restrict px_v,
                      const float *restrict py_v, const float *restrict above_v, float *restrict u, float *restrict v)
{
    float lanes[LANES] = {0}, total = 0; /* summed in one order, whatever the width of vectors */
    ALIGNED(wx), ALIGNED(wy), ALIGNED(constant), ALIGNED(inverse), ALIGNED(u), ALIGNED(v);
    ALIGNED(px_u), ALIGNED(py_u), ALIGNED(above_u), ALIGNED(px_v), ALIGNED(py_v), ALIGNED(above_v);
    for (int start = 0; start < pitch / LANES * LANES; start += LANES) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            int x = start + i;
            float rho = constant[x] + wx[x] * u[x] + wy[x] * v[x];
            float step = rho * inverse[x];
            step = step < -threshold ? -threshold : step;
            step = step > threshold ? threshold : step;
            float du = theta * (px_u[x] - px_u[x - 1] + py_u[x] - above_u[x]) - step * wx[x];
            float dv = theta * (px_v[x] - px_v[x - 1] + py_v[x] - above_v[x]) - step * wy[x];
            u[x] += du;
            v[x] += dv;
            lanes[i] += du * du + dv * dv;
        }
    }
    for (int i = 0; i < LANES; i++)
        total += lanes[i];
    return total;
}

ROW static void update_p(int pitch, float taut, const float *restrict taut_x, const float *restrict u,
                         const float *restrict below, float *restrict px, float *restrict py)
{
    ALIGNED(taut_x), ALIGNED(u), ALIGNED(below), ALIGNED(px), ALIGNED(py);
#pragma omp simd
    for (int x = 0; x < pitch / LANES * LANES; x++) {
        float gx = taut_x[x] * (u[x + 1] - u[x]);
        float gy = taut * (below[x] - u[x]);
        float shrink = 1.0f / (1.0f + sqrtf(gx * gx + gy * gy));
        px[x] = (px[x] + gx) * shrink;
        py[x] = (py[x] + gy) * shrink;
    }
}

static double iterate(const Level *l, const Settings *s)
{
    double total = 0;
    for (int y = 0; y <= l->height; y++) {
        size_t row = (size_t)y * l->pitch, above = row - l->pitch;
        if (y < l->height)
            total += update_u(l->pitch, s->theta, s->threshold, l->wx + row, l->wy + row, l->constant + row,
                              l->inverse + row, l->px[0] + row, l->py[0] + row, l->py[0] + above, l->px[1] + row,
                              l->py[1] + row, l->py[1] + above, l->u[0] + row, l->u[1] + row);
        if (y > 0)
            for (int c = 0; c < 2; c++)
                update_p(l->pitch, s->taut, l->taut, l->u[c] + above,
                         l->u[c] + (y < l->height ? row : above), /* no difference across the far border */
                         l->px[c] + above, l->py[c] + above);
    }
    return total;
}

/* ---- what stands around the iteration */

/* 5x5 median. The five values of each column are put in order once and serve five neighbouring pixels. */
static void median(const Level *l, float *plane)
{
    int height = l->height, width = l->width, pitch = width + 4;
    for (int y = -2; y < height + 2; y++) {
        const float *from = plane + (size_t)at_least(0, at_most(y, height - 1)) * l->pitch;
        float *to = l->padded + (size_t)(y + 2) * pitch;
        memcpy(to + 2, from, width * sizeof *to);
        to[0] = to[1] = from[0];
        to[width + 2] = to[width + 3] = from[width - 1];
    }
#define EXCHANGE(i, j)               \
    low = v##i < v##j ? v##i : v##j;  \
    high = v##i < v##j ? v##j : v##i; \
    v##i = low;                      \
    v##j = high;
    float *restrict a = l->rows, *restrict b = a + pitch, *restrict c = b + pitch, *restrict d = c + pitch,
                    *restrict e = d + pitch;
    for (int y = 0; y < height; y++) {
        const float *rows = l->padded + (size_t)y * pitch;
        float *restrict out = plane + (size_t)y * l->pitch;
#pragma omp simd
        for (int x = 0; x < pitch; x++) {
            float v0 = rows[x], v1 = rows[x + pitch], v2 = rows[x + 2 * pitch], v3 = rows[x + 3 * pitch],
                  v4 = rows[x + 4 * pitch], low, high;
            SORT_5
            a[x] = v0, b[x] = v1, c[x] = v2, d[x] = v3, e[x] = v4;
        }
#pragma omp simd
        for (int x = 0; x < width; x++) {
            float v0 = a[x], v1 = a[x + 1], v2 = a[x + 2], v3 = a[x + 3], v4 = a[x + 4];
            float v5 = b[x], v6 = b[x + 1], v7 = b[x + 2], v8 = b[x + 3], v9 = b[x + 4];
            float v10 = c[x], v11 = c[x + 1], v12 = c[x + 2], v13 = c[x + 3], v14 = c[x + 4];
            float v15 = d[x], v16 = d[x + 1], v17 = d[x + 2], v18 = d[x + 3], v19 = d[x + 4];
            float v20 = e[x], v21 = e[x + 1], v22 = e[x + 2], v23 = e[x + 3], v24 = e[x + 4];
            float low, high;
            MEDIAN_OF_SORTED_COLUMNS
            out[x] = MEDIAN;
        }
    }
}

static void differentiate(const Level *l, const float *image)
{
    int height = l->height, width = l->width;
    size_t pitch = width + 2 * ZEROS;
    for (int y = 0; y < height; y++) {
        const float *row = image + (size_t)y * width;
        const float *above = image + (size_t)at_least(y - 1, 0) * width;
        const float *below = image + (size_t)at_most(y + 1, height - 1) * width;
        float4 *to = l->planes + (y + ZEROS) * pitch + ZEROS;
        for (int x = 0; x < width; x++) {
            float gx = 0.5f * (row[at_most(x + 1, width - 1)] - row[at_least(x - 1, 0)]);
            to[x] = (float4){row[x], gx, 0.5f * (below[x] - above[x]), 0};
        }
    }
}

/* Weights of the four taps at every 1/32 px, each repeated for the four values of a pixel. */
static float16 cubic[SUBPIXELS];

/* Which text this was made from. */
const char *tvl1_source(void) { return SOURCE; }

void tvl1_prepare(void)
{
    const float a = -0.75f;
    for (int i = 0; i < SUBPIXELS; i++) {
        float t = (float)i / SUBPIXELS, far = 1 + t, near = 1 - t, weight[4];
        weight[0] = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a;
        weight[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
        weight[2] = ((a + 2) * near - (a + 3)) * near * near + 1;
        weight[3] = 1 - weight[0] - weight[1] - weight[2];
        for (int j = 0; j < 16; j++)
            cubic[i][j] = weight[j / 4];
    }
}

/* Warp the second frame by (u, v) and set up the residual. Positions that lie beyond the border of zeros are
 * moved to where all taps are zero. */
static void linearise(const Level *l, const float *image)
{
    int height = l->height, width = l->width;
    ptrdiff_t pitch = width + 2 * ZEROS;
    int32_t *restrict across = (int32_t *)l->rows, *restrict down = across + width;
    float *restrict warped = l->rows + 2 * width;
    for (int y = 0; y < height; y++) {
        size_t row = (size_t)y * l->pitch;
        const float *restrict u = l->u[0] + row, *restrict v = l->u[1] + row;
        const float *restrict image_row = image + (size_t)y * width;
        float *restrict wx = l->wx + row, *restrict wy = l->wy + row;
        float *restrict constant = l->constant + row, *restrict inverse = l->inverse + row;
#pragma omp simd
        for (int x = 0; x < width; x++) {
            float at_x = x + u[x], at_y = y + v[x];
            at_x = at_x > -3.0f ? at_x : -3.0f; /* also where it is not a number */
            at_y = at_y > -3.0f ? at_y : -3.0f;
            at_x = at_x < width + 1.0f ? at_x : width + 1.0f;
            at_y = at_y < height + 1.0f ? at_y : height + 1.0f;
            across[x] = (int32_t)rintf(at_x * SUBPIXELS);
            down[x] = (int32_t)rintf(at_y * SUBPIXELS);
        }
        for (int x = 0; x < width; x++) {
            const float4 *tap = l->planes + ((down[x] >> 5) + ZEROS - 1) * pitch + (across[x] >> 5) + ZEROS - 1;
            const float *weight = (const float *)&cubic[down[x] & (SUBPIXELS - 1)];
            float16 sum = weight[0] * *(const float16 *)tap + weight[4] * *(const float16 *)(tap + pitch) +
                          weight[8] * *(const float16 *)(tap + 2 * pitch) +
                          weight[12] * *(const float16 *)(tap + 3 * pitch);
            sum *= cubic[across[x] & (SUBPIXELS - 1)];
            const float4 *part = (const float4 *)&sum;
            float4 value = (part[0] + part[1]) + (part[2] + part[3]);
            *(float4 *)(warped + 4 * x) = value;
        }
#pragma omp simd
        for (int x = 0; x < width; x++) {
            float ix = warped[4 * x + 1], iy = warped[4 * x + 2], gradient = ix * ix + iy * iy;
            wx[x] = ix;
            wy[x] = iy;
            constant[x] = warped[4 * x] - ix * u[x] - iy * v[x] - image_row[x];
            inverse[x] = gradient > EPSILON ? 1.0f / gradient : NO_GRADIENT;
        }
    }
}

/* cv::resize INTER_LINEAR from rows of `width` floats to a level's, and the flow made 1 / step longer. */
static void enlarge(const float *from, int height, int width, const Level *l, float *to, float step)
{
    double ratio_y = (double)height / l->height, ratio_x = (double)width / l->width;
    float longer = (float)(1.0 / step);
    for (int y = 0; y < l->height; y++) {
        float at = (float)((y + 0.5) * ratio_y - 0.5), floor_y = floorf(at), fy = at - floor_y;
        int top = (int)floor_y;
        if (top < 0 || top >= height - 1)
            fy = 0;
        top = at_least(0, at_most(top, height - 1));
        const float *a = from + (size_t)top * width, *b = from + (size_t)at_most(top + 1, height - 1) * width;
        for (int x = 0; x < l->width; x++) {
            float across = (float)((x + 0.5) * ratio_x - 0.5), floor_x = floorf(across), fx = across - floor_x;
            int left = (int)floor_x;
            if (left < 0 || left >= width - 1)
                fx = 0;
            left = at_least(0, at_most(left, width - 1));
            int right = at_most(left + 1, width - 1);
            float upper = a[left] * (1 - fx) + a[right] * fx, lower = b[left] * (1 - fx) + b[right] * fx;
            to[(size_t)y * l->pitch + x] = (upper * (1 - fy) + lower * fy) * longer;
        }
    }
}

static void solve(const Level *l, const Settings *s, const float *image)
{
    double still = (double)s->still * l->height * l->width;
    for (int w = 0; w < s->warps; w++) {
        linearise(l, image);
        for (int i = 0; i < s->inner * s->outer; i++) {
            if (s->median && i % s->inner == 0)
                for (int c = 0; c < 2; c++)
                    median(l, l->u[c]);
            if (iterate(l, s) <= still)
                break;
        }
    }
}

/* ---- one pair */

static int pitch_of(int width) { return (width + LANES) / LANES * LANES; }

/* The next `size` floats of `from`, zeroed, aligned to whole vectors, with a vector of zeros before them. */
static float *take(float **from, size_t size)
{
    float *taken = *from + LANES;
    size = (size + LANES - 1) / LANES * LANES;
    memset(*from, 0, (size + LANES) * sizeof(float));
    *from = taken + size;
    return taken;
}

/* Flow of one pair into out (2, heights[0], widths[0]). first[i] and second[i] are the images of level i, finest
 * first. Returns 0, or 1 when memory is short. */
int tvl1_pair(const float *const *first, const float *const *second, const int32_t *heights, const int32_t *widths,
              int32_t levels, const Settings *s, float *out)
{
    /* 11 planes with a row above, the taps and their border, the median's plane and rows. */
    size_t room = 11 * (size_t)(heights[0] + 1) * pitch_of(widths[0]) +
                  5 * (size_t)(heights[0] + 2 * ZEROS) * (widths[0] + 2 * ZEROS) + 8 * pitch_of(widths[0] + 4) +
                  32 * LANES;
    float *memory = malloc((room + LANES) * sizeof(float));
    if (!memory)
        return 1;
#if defined(__SSE2__)
    /* Numbers below 1e-38 count as zero during this call: they arise where nothing moves and cost far more. */
    unsigned state = _mm_getcsr();
    _mm_setcsr(state | 0x8040);
#endif
    for (int i = levels - 1; i >= 0; i--) {
        float *from = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
        Level l = {.height = heights[i], .width = widths[i], .pitch = pitch_of(widths[i])};
        size_t plane = (size_t)l.height * l.pitch;
        float **single[6] = {&l.wx, &l.wy, &l.constant, &l.inverse, &l.u[0], &l.u[1]};
        for (int j = 0; j < 6; j++)
            *single[j] = take(&from, plane);
        float **dual[4] = {&l.px[0], &l.py[0], &l.px[1], &l.py[1]};
        for (int j = 0; j < 4; j++)
            *dual[j] = take(&from, plane + l.pitch) + l.pitch;
        l.taut = take(&from, l.pitch);
        for (int x = 0; x < l.width - 1; x++)
            l.taut[x] = s->taut;
        l.planes = (float4 *)take(&from, 4 * (size_t)(l.height + 2 * ZEROS) * (l.width + 2 * ZEROS));
        l.padded = take(&from, (size_t)(l.height + 4) * (l.width + 4));
        l.rows = take(&from, 6 * (size_t)(l.width + 4));
        differentiate(&l, second[i]);
        if (i < levels - 1)
            for (int c = 0; c < 2; c++)
                enlarge(out + (size_t)c * heights[i + 1] * widths[i + 1], heights[i + 1], widths[i + 1], &l, l.u[c],
                        s->step);
        solve(&l, s, first[i]);
        for (int c = 0; c < 2; c++)
            for (int y = 0; y < l.height; y++)
                memcpy(out + ((size_t)c * l.height + y) * l.width, l.u[c] + (size_t)y * l.pitch,
                       l.width * sizeof(float));
    }
#if defined(__SSE2__)
    _mm_setcsr(state);
#endif
    free(memory);
    return 0;
}
