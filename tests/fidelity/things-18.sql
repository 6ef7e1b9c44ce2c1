-- What PostgreSQL has learnt after version 15.
CREATE TABLE things.since_15 (
    id integer GENERATED ALWAYS AS IDENTITY,
    doubled integer GENERATED ALWAYS AS (id * 2) VIRTUAL,
    place int4range,
    during daterange,
    CONSTRAINT temporal PRIMARY KEY (place, during WITHOUT OVERLAPS),
    CONSTRAINT believed CHECK (id < 1000) NOT ENFORCED,
    CONSTRAINT there NOT NULL id
);
