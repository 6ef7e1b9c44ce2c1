-- One of each kind of object that a database can hold; they refer to each other as those of real databases do.
CREATE SCHEMA things AUTHORIZATION owner;
CREATE SCHEMA "odd ""names""";
COMMENT ON SCHEMA things IS E'several\nlines\tand a \\ backslash';
ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA things GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE app REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
GRANT USAGE ON SCHEMA things TO app WITH GRANT OPTION;

-- types
CREATE TYPE things.mood AS ENUM ('sad', 'ok', 'it''s "fine"');
CREATE TYPE things.pair AS (first integer, second text COLLATE "C");
CREATE DOMAIN things.percent AS numeric(5, 2) DEFAULT 50 NOT NULL CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN things.percents AS things.percent[] CHECK (cardinality(VALUE) < 9);
CREATE TYPE things.span AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = things.spans);
CREATE TYPE things.shell;
CREATE FUNCTION things.shell_in(cstring) RETURNS things.shell IMMUTABLE STRICT LANGUAGE internal AS 'int4in';
CREATE FUNCTION things.shell_out(things.shell) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'int4out';
CREATE TYPE things.shell (INPUT = things.shell_in, OUTPUT = things.shell_out, LIKE = integer);

-- functions, operators, casts, aggregates, languages, access methods
CREATE FUNCTION things.twice(a integer, b integer DEFAULT 2) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 7 RETURN a * b;
CREATE FUNCTION things.rows_of(IN n integer, OUT a integer, OUT b text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog ROWS 3
    AS $body$ BEGIN RETURN QUERY SELECT i, 'row $' || i FROM generate_series(1, n) i; END $body$;
CREATE PROCEDURE things.nothing(INOUT x integer) LANGUAGE plpgsql AS 'BEGIN x := x + 1; END';
REVOKE ALL ON FUNCTION things.twice FROM PUBLIC;
GRANT EXECUTE ON FUNCTION things.twice TO app;
CREATE OPERATOR things.<+> (
    LEFTARG = integer, RIGHTARG = integer, FUNCTION = things.twice, COMMUTATOR = OPERATOR(things.<+>)
);
CREATE FUNCTION things.to_mood(integer) RETURNS things.mood LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN $1 > 0 THEN 'ok' ELSE 'sad' END::things.mood;
CREATE CAST (integer AS things.mood) WITH FUNCTION things.to_mood(integer) AS ASSIGNMENT;
CREATE CAST (things.shell AS integer) WITHOUT FUNCTION;
CREATE CAST (things.pair AS text) WITH INOUT;
CREATE AGGREGATE things.product(float8) (SFUNC = float8mul, STYPE = float8, INITCOND = '1');
CREATE AGGREGATE things.nth(float8 ORDER BY float8) (
    SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA
);
CREATE TRUSTED LANGUAGE plthings HANDLER plpgsql_call_handler INLINE plpgsql_inline_handler VALIDATOR plpgsql_validator;
CREATE ACCESS METHOD heap_too TYPE TABLE HANDLER heap_tableam_handler;
CREATE OPERATOR FAMILY things.whole USING btree;
CREATE OPERATOR CLASS things.backwards FOR TYPE integer USING btree FAMILY things.whole AS
    OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 btint4cmp(integer, integer);
CREATE DEFAULT CONVERSION things.conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE COLLATION things.bytes (LOCALE = 'C');
CREATE TRANSFORM FOR integer LANGUAGE plthings (
    FROM SQL WITH FUNCTION prsd_lextype(internal), TO SQL WITH FUNCTION int4recv(internal)
);

-- text search
CREATE TEXT SEARCH PARSER things.parser (
    START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline
);
CREATE TEXT SEARCH TEMPLATE things.template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY things.dictionary (TEMPLATE = things.template, ACCEPT = false);
CREATE TEXT SEARCH CONFIGURATION things.search (PARSER = things.parser);
ALTER TEXT SEARCH CONFIGURATION things.search ADD MAPPING FOR asciiword, email WITH things.dictionary, simple;

-- tables
CREATE SEQUENCE things.numbers AS smallint START 5 INCREMENT 5 MAXVALUE 3000 CACHE 2 CYCLE;
CREATE SEQUENCE things.downwards INCREMENT -3;
CREATE SEQUENCE things.parts_seq;
CREATE SEQUENCE things.unused;
CREATE TABLE things.main (
    id integer GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 2) PRIMARY KEY,
    name text COMPRESSION pglz COLLATE things.bytes NOT NULL DEFAULT 'nobody',
    mood things.mood DEFAULT 'ok',
    pair things.pair,
    share things.percent,
    shares things.percents,
    span things.spans,
    number smallint DEFAULT nextval('things.numbers'),
    doubled integer GENERATED ALWAYS AS (length(name) * 2) STORED,
    data jsonb CHECK (jsonb_typeof(data) = 'object') NO INHERIT,
    gone integer,
    CONSTRAINT short CHECK (length(name) < 5000) NOT VALID,
    UNIQUE NULLS NOT DISTINCT (number, mood) INCLUDE (share) DEFERRABLE INITIALLY DEFERRED
) WITH (fillfactor = 70, autovacuum_enabled = false);
ALTER TABLE things.main DROP COLUMN gone;
ALTER TABLE things.main ALTER COLUMN name SET STATISTICS 321, ALTER COLUMN name SET STORAGE EXTERNAL,
    ALTER COLUMN name SET (n_distinct = -0.5);
ALTER TABLE things.main OWNER TO owner;
ALTER TABLE things.main REPLICA IDENTITY FULL;
GRANT SELECT (id, name), UPDATE (name) ON things.main TO reader;
GRANT ALL ON things.main TO "Grüße, ""Anna""" WITH GRANT OPTION;
COMMENT ON TABLE things.main IS 'Käse, 奶酪, 🧀';
COMMENT ON COLUMN things.main.name IS 'of whom';
INSERT INTO things.main (name, mood, pair, share, shares, span, data)
    SELECT repeat(md5(n::text), 1 + n % 30), n % 3 - 1, ROW(n, E'tab\t"\\')::things.pair, n % 100, ARRAY[1, 2.5]::things.percents,
        things.spans(things.span(n, n + 0.5)), jsonb_build_object('n', n, 'text', repeat('x', n))
    FROM generate_series(1, 200) n;
ALTER TABLE things.main ADD COLUMN later text DEFAULT 'fast default', ADD COLUMN dropped_soon integer DEFAULT 1;
ALTER TABLE things.main DROP COLUMN dropped_soon;
CREATE TABLE "odd ""names"""."a.b; DROP TABLE x --" ("select" integer, "Ä ö" text, CHECK ("select" <> 7));
INSERT INTO "odd ""names"""."a.b; DROP TABLE x --" VALUES (1, E'\\.'), (2, NULL), (3, ''), (4, E'a\r\nb\x08');
CREATE TABLE things.without_columns ();
INSERT INTO things.without_columns DEFAULT VALUES;
CREATE TABLE things.typed OF things.pair (PRIMARY KEY (first));
CREATE TABLE things.too (LIKE things.main INCLUDING ALL) USING heap_too;
CREATE TABLE things.child (extra integer) INHERITS (things.main);
INSERT INTO things.child (id, name, extra) VALUES (1, 'child', 1);
CREATE TABLE things.refers (
    main integer REFERENCES things.main ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE,
    number integer, during int4range, EXCLUDE USING gist (during WITH &&) WHERE (number > 0)
);
INSERT INTO things.refers SELECT 10 + 2 * n, n, int4range(n, n + 1) FROM generate_series(0, 50) n;
CREATE UNLOGGED TABLE things.unlogged (id serial PRIMARY KEY, t text);
INSERT INTO things.unlogged (t) SELECT 'gone after a crash' FROM generate_series(1, 50);
CREATE UNLOGGED SEQUENCE things.unlogged_sequence START 100;
SELECT setval('things.unlogged_sequence', 500);

-- partitions
CREATE TABLE things.parts (at date NOT NULL, region text, value integer) PARTITION BY RANGE (at);
CREATE TABLE things.parts_old PARTITION OF things.parts FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
CREATE TABLE things.parts_new PARTITION OF things.parts FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)
    PARTITION BY LIST (region);
CREATE TABLE things.parts_north PARTITION OF things.parts_new FOR VALUES IN ('n', NULL) PARTITION BY HASH (value);
CREATE TABLE things.parts_north_0 PARTITION OF things.parts_north FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE things.parts_north_1 PARTITION OF things.parts_north FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE things.parts_other PARTITION OF things.parts_new DEFAULT;
CREATE INDEX parts_value ON things.parts (value);
INSERT INTO things.parts SELECT '2025-12-01'::date + n, (ARRAY['n', 's', NULL])[1 + n % 3], n FROM generate_series(0, 99) n;

-- indexes, statistics, views, rules, triggers, policies
CREATE INDEX expression ON things.main USING btree (id things.backwards DESC NULLS LAST, (name || later)) WHERE id > 5;
CREATE INDEX ON things.main USING gin (data jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX ON things.main USING brin (id) WITH (pages_per_range = 4);
CREATE INDEX ON things.main USING hash (name);
CREATE INDEX ON things.main USING spgist (name);
CREATE UNIQUE INDEX clustered ON things.main (id, name);
ALTER TABLE things.main CLUSTER ON clustered;
ALTER INDEX things.expression ALTER COLUMN 2 SET STATISTICS 77;
CREATE STATISTICS things.together (ndistinct, dependencies, mcv) ON number, mood, (length(name)) FROM things.main;
ALTER STATISTICS things.together SET STATISTICS 50;
CREATE VIEW things.seen WITH (security_barrier) AS SELECT id, name FROM things.main WHERE id > 20 WITH LOCAL CHECK OPTION;
CREATE RECURSIVE VIEW things.counted (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM counted WHERE n < 5;
CREATE MATERIALIZED VIEW things.kept AS SELECT mood, count(*) AS number FROM things.main GROUP BY mood;
CREATE UNIQUE INDEX ON things.kept (mood);
CREATE MATERIALIZED VIEW things.not_filled AS SELECT 1 AS one WITH NO DATA;
CREATE RULE instead AS ON INSERT TO things.seen DO INSTEAD INSERT INTO things.main (name) VALUES (NEW.name);
ALTER TABLE things.typed ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON things.typed AS RESTRICTIVE FOR UPDATE TO app, reader USING (first > 0) WITH CHECK (second <> '');
CREATE FUNCTION things.watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER before BEFORE UPDATE OF name ON things.main FOR EACH ROW WHEN (OLD.name <> NEW.name)
    EXECUTE FUNCTION things.watch('argument');
CREATE TRIGGER counted AFTER INSERT ON things.main REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION things.watch();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON things.refers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION things.watch();
ALTER TABLE things.main DISABLE TRIGGER counted, ENABLE ALWAYS TRIGGER before;
CREATE FUNCTION things.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION things.on_ddl();
ALTER EVENT TRIGGER ddl ENABLE REPLICA;

-- other servers, replication
CREATE FOREIGN DATA WRAPPER wrapper OPTIONS (debug 'true');
CREATE SERVER elsewhere TYPE 'thing' VERSION '1' FOREIGN DATA WRAPPER wrapper OPTIONS (host '192.0.2.1');
CREATE USER MAPPING FOR app SERVER elsewhere OPTIONS (password 'p''w');
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere;
CREATE FOREIGN TABLE things.far (id integer OPTIONS (key 'yes') NOT NULL, t text) SERVER elsewhere OPTIONS (file '/x');
GRANT USAGE ON FOREIGN SERVER elsewhere TO app;
CREATE PUBLICATION a_few FOR TABLE things.main (id, name) WHERE (id > 5) WITH (publish = 'insert');
CREATE PUBLICATION schema FOR TABLES IN SCHEMA "odd ""names""";
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE SUBSCRIPTION far_away CONNECTION 'host=192.0.2.1 dbname=x password=y' PUBLICATION a_few
    WITH (connect = false, enabled = false, slot_name = NONE);

-- large objects
SELECT lo_from_bytea(7001, decode(repeat('00ff5c', 20000), 'hex')), lo_create(7002), lo_from_bytea(7003, 'third');
ALTER LARGE OBJECT 7001 OWNER TO owner;
GRANT SELECT, UPDATE ON LARGE OBJECT 7001 TO reader;
COMMENT ON LARGE OBJECT 7002 IS 'empty';
ANALYZE;
