-- Roles, memberships, settings: what belongs to no single database. Passwords are hashed by the server.
CREATE ROLE owner NOLOGIN;
CREATE ROLE app LOGIN PASSWORD 'secret' CONNECTION LIMIT 7 VALID UNTIL '2099-12-31 12:00:00+00' IN ROLE owner;
CREATE ROLE reader LOGIN NOINHERIT PASSWORD NULL;
CREATE ROLE md5 LOGIN PASSWORD 'md56ba8a51e2ad0ddd86f01d6afbae3ab4e';
CREATE ROLE boss SUPERUSER CREATEDB CREATEROLE BYPASSRLS REPLICATION;
CREATE ROLE "Grüße, ""Anna""" LOGIN;
GRANT reader TO app WITH ADMIN OPTION;
GRANT pg_monitor, pg_read_all_data TO reader;
ALTER ROLE app SET work_mem = '17MB';
ALTER ROLE app SET search_path = 'things, "$user"';
ALTER ROLE ALL SET lock_timeout = '1h';
COMMENT ON ROLE app IS 'it''s the application''s';
GRANT SET ON PARAMETER log_min_messages TO app;
GRANT ALTER SYSTEM ON PARAMETER work_mem TO reader;
