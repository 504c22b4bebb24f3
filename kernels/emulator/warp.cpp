// Warp operations: barriers, ballots, shuffles, and the matrix instructions with the lane layouts of the PTX manual.
#include <string.h>

#include "block.hpp"
#include "faults.hpp"

namespace emulator {

static unsigned lane() { return current->lane; }

void warp_barrier(uint32_t mask, Site site) { running_block->at_operation(Operation::barrier, mask, site, {}, nullptr); }

uint32_t warp_ballot(uint32_t mask, bool predicate, Site site) {
    Offer offer{};
    offer.bits = predicate;
    auto count = [](Operation, Offer* offers, uint32_t lanes) {
        uint32_t votes = 0;
        for (unsigned i = 0; i < lanes_per_warp; i++) {
            if (lanes >> i & 1 && offers[i].bits) votes |= 1u << i;
        }
        for (unsigned i = 0; i < lanes_per_warp; i++) offers[i].bits = votes;
    };
    return uint32_t(running_block->at_operation(Operation::ballot, mask, site, offer, count)[lane()].bits);
}

uint64_t warp_shuffle(Shuffle kind, uint32_t mask, uint64_t bits, int operand, int width, Site site) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) fatal("the shuffle at %s:%d has width %d; a power of two up to 32 is needed", site.file, site.line, width);
    Offer offer{};
    offer.bits = bits;
    const Offer* offers = running_block->at_operation(Operation::shuffle, mask, site, offer, nullptr);
    const int me = int(lane()), first = me & ~(width - 1), last = first + width - 1;
    int source = me;
    switch (kind) {
        case Shuffle::from_lane: source = first + (operand & (width - 1)); break;
        case Shuffle::up: source = me - operand < first ? me : me - operand; break;
        case Shuffle::down: source = me + operand > last ? me : me + operand; break;
        case Shuffle::exclusive_or: source = (me ^ operand) > last ? me : me ^ operand; break;
    }
    if (source < 0 || source > 31) fatal("the shuffle at %s:%d reads lane %d", site.file, site.line, source);
    const unsigned threads = current->block_size.x * current->block_size.y * current->block_size.z;
    if (running_block->fibre().index - unsigned(me) + unsigned(source) >= threads) {
        fatal("the shuffle at %s:%d reads lane %d, which the block's last warp has not", site.file, site.line, source);
    }
    return offers[source].bits;
}

static void need_whole_warp(Operation operation, uint32_t lanes) {
    if (lanes != 0xffffffffu) fatal("%s needs a warp of 32 threads; this one has the lanes %08x", operation_name(operation), lanes);
}

void load_matrices(uint32_t* registers, const void* row, bool transposed, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0 || !running_block->shared.holds(row, 16)) {
        fatal("ldmatrix at %s:%d: lane %u names a row that is not 16 aligned bytes of shared memory (%p)", site.file, site.line, lane(), row);
    }
    Offer offer{};
    offer.bits = transposed;
    offer.out = registers;
    offer.first = row;
    // Lanes 8i to 8i+7 name the rows of matrix i. Lane t gets, of each, elements 2(t%4) and 2(t%4)+1 of row t/4; transposed, of column t/4.
    auto load = [](Operation operation, Offer* offers, uint32_t lanes) {
        need_whole_warp(operation, lanes);
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            uint16_t rows[8][8];
            for (unsigned r = 0; r < 8; r++) memcpy(rows[r], offers[matrix * 8 + r].first, 16);
            for (unsigned t = 0; t < 32; t++) {
                const unsigned i = t / 4, j = 2 * (t % 4);
                const bool across = offers[t].bits != 0;
                const uint32_t low = across ? rows[j][i] : rows[i][j], high = across ? rows[j + 1][i] : rows[i][j + 1];
                static_cast<uint32_t*>(offers[t].out)[matrix] = low | high << 16;
            }
        }
    };
    running_block->at_operation(Operation::load_matrices, 0xffffffffu, site, offer, load);
}

static float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
    // Infinity and NaN keep all ones in the exponent; for the rest a product moves the exponent's bias, subnormals included.
    if (magnitude >= 0x7c00) return from_bits<float>(uint64_t(sign | 0x7f800000u | magnitude << 13));
    const float x = from_bits<float>(uint64_t(magnitude << 13)) * from_bits<float>(uint64_t(0x77800000u));
    return from_bits<float>(uint64_t(sign) | to_bits(x));
}

struct Unpack {
    // The number in the low (i = 0) or high half of a register.
    static float half(uint32_t r, unsigned i) { return from_half(uint16_t(r >> 16 * i)); }
    static float bf16(uint32_t r, unsigned i) { return from_bits<float>(uint64_t(i == 0 ? r << 16 : r & 0xffff0000u)); }
};

// C += A B in f32 with A [16, K] and B [K, 8] as plain arrays.
template <unsigned K> static void product(Offer* offers, const float (&a)[16][K], const float (&b)[K][8]) {
    float c[16][8];
    for (unsigned t = 0; t < 32; t++) {
        const float* registers = static_cast<const float*>(offers[t].out);
        for (unsigned i = 0; i < 4; i++) c[t / 4 + 8 * (i / 2)][2 * (t % 4) + i % 2] = registers[i];
    }
    for (unsigned row = 0; row < 16; row++) {
        for (unsigned k = 0; k < K; k++) {
            for (unsigned column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
        }
    }
    for (unsigned t = 0; t < 32; t++) {
        float* registers = static_cast<float*>(offers[t].out);
        for (unsigned i = 0; i < 4; i++) registers[i] = c[t / 4 + 8 * (i / 2)][2 * (t % 4) + i % 2];
    }
}

// m16n8k16: with g = lane / 4 and t = lane % 4, A's register i holds row g + 8 (i % 2), columns 2t + 8 (i / 2) and the next; B's register i
// holds rows 2t + 8i and the next of column g.
template <float (*unpack)(uint32_t, unsigned)> static void multiply_16(Offer* offers) {
    float a[16][16], b[16][8];
    for (unsigned l = 0; l < 32; l++) {
        const uint32_t* ra = static_cast<const uint32_t*>(offers[l].first);
        const uint32_t* rb = static_cast<const uint32_t*>(offers[l].second);
        const unsigned g = l / 4, t = l % 4;
        for (unsigned half = 0; half < 2; half++) {
            for (unsigned i = 0; i < 4; i++) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = unpack(ra[i], half);
            for (unsigned i = 0; i < 2; i++) b[2 * t + 8 * i + half][g] = unpack(rb[i], half);
        }
    }
    product(offers, a, b);
}

// m16n8k8: A's register i holds row g + 8 (i % 2), column t + 4 (i / 2); B's register i holds row t + 4i of column g. The hardware reads
// the upper 19 bits of a register.
static void multiply_tf32(Offer* offers) {
    float a[16][8], b[8][8];
    auto tf32 = [](uint32_t r) { return from_bits<float>(uint64_t(r & 0xffffe000u)); };
    for (unsigned l = 0; l < 32; l++) {
        const uint32_t* ra = static_cast<const uint32_t*>(offers[l].first);
        const uint32_t* rb = static_cast<const uint32_t*>(offers[l].second);
        const unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < 4; i++) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32(ra[i]);
        for (unsigned i = 0; i < 2; i++) b[t + 4 * i][g] = tf32(rb[i]);
    }
    product(offers, a, b);
}

void multiply(Number number, float* c, const uint32_t* a, const uint32_t* b, Site site) {
    Offer offer{};
    offer.out = c;
    offer.first = a;
    offer.second = b;
    auto compute = [](Operation operation, Offer* offers, uint32_t lanes) {
        need_whole_warp(operation, lanes);
        if (operation == Operation::multiply_f16) return multiply_16<Unpack::half>(offers);
        if (operation == Operation::multiply_bf16) return multiply_16<Unpack::bf16>(offers);
        multiply_tf32(offers);
    };
    const Operation operation = number == Number::f16    ? Operation::multiply_f16
                                : number == Number::bf16 ? Operation::multiply_bf16
                                                         : Operation::multiply_tf32;
    running_block->at_operation(operation, 0xffffffffu, site, offer, compute);
}

// Asynchronous copies belong to a thread, not to its warp: they are queued and done at the thread's own wait.
void copy_async(void* shared, const void* global, bool valid, Site site) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || !running_block->shared.holds(shared, 16)) {
        fatal("cp_async_16 at %s:%d writes %p, which is not 16 aligned bytes of shared memory", site.file, site.line, shared);
    }
    if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        fatal("cp_async_16 at %s:%d reads %p, which is not a multiple of 16", site.file, site.line, global);
    }
    running_block->fibre().copies.push_back({shared, global, valid});
}

void copy_async_commit() {
    Fibre& fibre = running_block->fibre();
    fibre.groups.push_back(fibre.copies.size());
}

void copy_async_wait(unsigned groups_left) {
    Fibre& fibre = running_block->fibre();
    if (fibre.groups.size() <= groups_left) return;
    const size_t groups = fibre.groups.size() - groups_left, copies = fibre.groups[groups - 1];
    for (size_t i = 0; i < copies; i++) {
        const Copy& copy = fibre.copies[i];
        if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + long(copies));
    fibre.groups.erase(fibre.groups.begin(), fibre.groups.begin() + long(groups));
    for (size_t& end : fibre.groups) end -= copies;
}

void trap(const char* message, Site site) { fatal("%s (%s:%d)", message, site.file, site.line); }

}  // namespace emulator
