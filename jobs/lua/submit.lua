-- Create a job, or find the one that the same Idempotency-Key made.
-- KEYS[6] the idempotency key's record (or the job key again where there is none).
-- ARGV: id, created_ms, check_delay_ms, idempotency ttl in ms ('0' for none), fingerprint,
-- most jobs that may be queued ('0' for any number),
-- what `finish.lua` takes from state to cache (each '' where the job has not ended), field, value, ...
local id, created, delay, ttl, fingerprint = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local most, has_ended = tonumber(ARGV[6]), ARGV[7] ~= ''
local is_full = most > 0 and not has_ended and redis.call('ZCARD', queued) >= most
if ttl > 0 then
  local known = redis.call('HMGET', KEYS[6], 'job', 'fingerprint')
  if known[1] then
    return { known[2] == fingerprint and 'replayed' or 'mismatch', known[1] }
  end
  if is_full then return { 'full', id } end
  redis.call('HSET', KEYS[6], 'job', id, 'fingerprint', fingerprint)
  redis.call('PEXPIRE', KEYS[6], ttl)
end
if redis.call('EXISTS', job) == 1 then return { 'exists', id } end
if is_full then return { 'full', id } end
-- A record that is made long after its job takes the place of one that was lost. Its revisions begin
-- above any that this one can have had, or a client that knows one would take the end for no change.
local seconds = math.max(0, math.floor((now_ms() - tonumber(created)) / 1000))
set('state', 'queued', 'attempt', 0, 'revision', string.format('%.0f', seconds * 1000), 'created_ms', created, unpack(ARGV, 14))
redis.call('ZADD', open, now_ms() + tonumber(delay), id)
-- Not in the future, whatever the service's clock says.
redis.call('ZADD', queued, math.min(tonumber(created), now_ms()), id)
redis.call('ZADD', index, 0, id)
bump('queued')
if has_ended then
  set('attempt', ARGV[12])
  finish_with(id, ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[13])
end
return { 'created', id }
