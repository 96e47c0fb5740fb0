-- A database as version 2 left it: eight openings, one declared pool with two generations. Never edited.
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at REAL NOT NULL) STRICT;
INSERT INTO schema_version VALUES (1, 1763800000.0), (2, 1763880000.0);
CREATE TABLE instance (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    host TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    fences INTEGER NOT NULL DEFAULT 1,
    changes INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO instance VALUES (1, '', 8, 1849688064020971520, 41, 3967105762);
CREATE TABLE pool (
    pool_id TEXT PRIMARY KEY,
    origin TEXT NOT NULL,
    create_time REAL NOT NULL,
    state TEXT NOT NULL DEFAULT '',
    checksum INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO pool VALUES ('chat', 'config', 1763800001.5, '{"failures":3}', 65714628);
CREATE TABLE generation (
    pool_id TEXT NOT NULL REFERENCES pool (pool_id) ON DELETE CASCADE,
    generation INTEGER NOT NULL CHECK (generation >= 1),
    spec TEXT NOT NULL,
    create_time REAL NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pool_id, generation)
) STRICT, WITHOUT ROWID;
INSERT INTO generation VALUES ('chat', 2, '{"spec":{"engine":"COMMAND","command":"/usr/bin/server"}}', 1763800001.5, 2772064048);
INSERT INTO generation VALUES ('chat', 3, '{"spec":{"engine":"COMMAND","command":"/usr/bin/server","args":["--port","{port}"],"slots":2,"labels":{"team":"search"}}}', 1763890000.25, 1747234058);
PRAGMA application_id = 0x706F6F6C;
PRAGMA journal_mode = WAL;
