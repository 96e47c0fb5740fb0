-- A database as version 1 left it: seven openings, one declared pool with two generations. Never edited.
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at REAL NOT NULL) STRICT;
INSERT INTO schema_version VALUES (1, 1763800000.0);
CREATE TABLE instance (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    host TEXT NOT NULL,
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO instance VALUES (1, '', 7);
CREATE TABLE pool (
    pool_id TEXT PRIMARY KEY,
    origin TEXT NOT NULL,
    create_time REAL NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO pool VALUES ('chat', 'config', 1763800001.5);
CREATE TABLE generation (
    pool_id TEXT NOT NULL REFERENCES pool (pool_id) ON DELETE CASCADE,
    generation INTEGER NOT NULL CHECK (generation >= 1),
    spec TEXT NOT NULL,
    PRIMARY KEY (pool_id, generation)
) STRICT, WITHOUT ROWID;
INSERT INTO generation VALUES ('chat', 2, '{"spec":{"engine":"COMMAND","command":"/usr/bin/server"}}');
INSERT INTO generation VALUES ('chat', 3, '{"spec":{"engine":"COMMAND","command":"/usr/bin/server","args":["--port","{port}"],"slots":2,"labels":{"team":"search"}}}');
PRAGMA journal_mode = WAL;
