-- Take a job that is queued, or running under a lease that ran out.
-- KEYS[6] the fence. ARGV: id, worker, lease_ms, max_attempts, failure, failure code,
-- most jobs that may run ('0' for any number)
local id, worker, lease, max = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now, state = now_ms(), get('state')
if state == 'running' and tonumber(get('lease_until_ms')) > now then return { 'held' } end
if state ~= 'queued' and state ~= 'running' then return { state == '' and 'missing' or 'ended' } end
if get('cancel_requested') == '1' then
  finish(id, now, 'cancelled', '', '')
  return { 'ended' }
end
if tonumber(get('attempt')) >= max then
  finish(id, now, 'failed', ARGV[5], ARGV[6])
  return { 'exhausted' }
end
local most = tonumber(ARGV[7])
if state == 'queued' and most > 0 then
  local running = redis.call('ZCARD', open) - redis.call('ZCARD', queued)
  if running >= most then return { 'full' } end
end
if state == 'running' then end_attempt(now, 'requeued', 'worker_lost') end
local attempt = redis.call('HINCRBY', job, 'attempt', 1)
-- Not below the clock (in µs: faster than any claims), so that a counter that was lost with Redis's
-- data gives no token twice.
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]
local token = string.format('%.0f', math.max(redis.call('INCR', KEYS[6]), clock))
redis.call('SET', KEYS[6], token)
local raw = get('attempts')
local attempts = raw ~= '' and cjson.decode(raw) or {}
attempts[#attempts + 1] = { number = #attempts + 1, worker = worker, started_ms = string.format('%.0f', now) }
set('state', 'running', 'token', token, 'lease_until_ms', string.format('%.0f', now + lease),
  'progress', '', 'attempts', cjson.encode(attempts))
redis.call('HSETNX', job, 'started_ms', string.format('%.0f', now))
redis.call('ZREM', queued, id)
redis.call('ZADD', open, now + lease, id)
bump('running')
return { 'claimed', token, attempt }
