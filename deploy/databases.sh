#!/bin/sh
# Run once by the postgres image, when the data folder is empty: a role that is no superuser, and its databases.
# The product makes its own roles (e2i_owner, e2i_app, e2i_read) and the database e2i_feast.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set password="$(cat /run/secrets/e2i_password)" <<'SQL'
CREATE ROLE e2i LOGIN CREATEROLE CREATEDB PASSWORD :'password';
CREATE DATABASE e2i OWNER e2i;
CREATE DATABASE mlflow OWNER e2i;
CREATE DATABASE dagster OWNER e2i;
SQL
