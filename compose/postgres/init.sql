-- Once, in an empty cluster, by its superuser: the database of Weir and the one role that may use it.
-- The password comes from the file that WEIR_PASSWORD_FILE names; it is sent as a SCRAM verifier's input and never logged.
\set ON_ERROR_STOP on
\set password `cat "$WEIR_PASSWORD_FILE"`
CREATE ROLE weir LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 32 PASSWORD :'password';
CREATE DATABASE weir OWNER weir;
REVOKE ALL ON DATABASE weir FROM PUBLIC;
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
