/* Tile registers of AMX: each 16 lines of 64 bytes. */
#pragma once

#include "../kernels.h"
#include "vectors.h"

enum { TILE_LINES = 16, TILE_NUMBERS = TILE_LINES * SEGMENT }; /* numbers in bf16 */

/* The layout that `ldtilecfg` reads. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
} TileShapes;

/* Eight whole tiles. */
INLINE TileShapes whole_tiles(void) {
    TileShapes tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.line_bytes[i] = CACHE_LINE;
        tiles.lines[i] = TILE_LINES;
    }
    return tiles;
}

/* Until _tile_release, after which the system need not save the tiles. */
INLINE void configure_tiles(void) {
    TileShapes tiles = whole_tiles();
    _tile_loadconfig(&tiles);
}
