// Where a GPU's time goes: sums the time of every kernel and copy (and, with TRACE_API, of every call of the driver) by name, for any program.
//
//     gcc -shared -fPIC -O1 -I CUPTI/include -I CUDA/include benches/cuda_trace.c -o cuda_trace.so CUPTI/lib/libcupti.so.13 -lpthread
//     CUDA_INJECTION64_PATH=$PWD/cuda_trace.so TRACE_OUT=trace.txt lrpt bench configs/gpt2-124m.yaml --set device=cuda
//
// CUPTI is in the Python package nvidia-cuda-cupti.
#include <cuda.h>
#include <cupti.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES = 4096, NAME_LENGTH = 160, BUFFER_BYTES = 8 << 20 };

typedef struct {
    char name[NAME_LENGTH];
    unsigned long calls;
    double nanoseconds;
} Row;

static Row rows[NAMES];
static int count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void add(const char *name, uint64_t start, uint64_t end) {
    int row = 0;
    while (row < count && strncmp(rows[row].name, name, NAME_LENGTH - 1)) row++;
    if (row == NAMES) return;
    if (row == count) strncpy(rows[count++].name, name, NAME_LENGTH - 1);
    rows[row].calls++;
    rows[row].nanoseconds += (double)(end - start);
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *records) {
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    pthread_mutex_lock(&lock);
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        char name[NAME_LENGTH];
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const CUpti_ActivityKernel9 *kernel = (const void *)record;
            add(kernel->name, kernel->start, kernel->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const CUpti_ActivityMemcpy5 *copy = (const void *)record;
            snprintf(name, sizeof name, "copy %s", copy->copyKind == 1 ? "to the device" : copy->copyKind == 2 ? "to the host" : "within");
            add(name, copy->start, copy->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_DRIVER) {
            const CUpti_ActivityAPI *call = (const void *)record;
            const char *function = "?";
            cuptiGetCallbackName(CUPTI_CB_DOMAIN_DRIVER_API, call->cbid, &function);
            snprintf(name, sizeof name, "host: %s", function);
            add(name, call->start, call->end);
        }
    }
    pthread_mutex_unlock(&lock);
    free(buffer);
}

static int longest_first(const void *left, const void *right) {
    const double a = ((const Row *)left)->nanoseconds, b = ((const Row *)right)->nanoseconds;
    return (a < b) - (a > b);
}

static void finish(void) {
    cuptiActivityFlushAll(1);
    qsort(rows, count, sizeof(Row), longest_first);
    const char *path = getenv("TRACE_OUT");
    FILE *out = path ? fopen(path, "w") : stderr;
    if (!out) return;
    for (int row = 0; row < count; row++)
        fprintf(out, "%10.3f ms %8lu calls %9.2f us %s\n", rows[row].nanoseconds / 1e6, rows[row].calls, rows[row].nanoseconds / 1e3 / rows[row].calls,
                rows[row].name);
}

// The driver calls this when a program begins to use it.
int InitializeInjection(void) {
    cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
    if (getenv("TRACE_API")) cuptiActivityEnable(CUPTI_ACTIVITY_KIND_DRIVER);
    atexit(finish);
    return 1;
}
