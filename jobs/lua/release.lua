-- Give a running job back after a failure that another attempt may survive.
-- ARGV: id, token, counted (1 or 0), max_attempts, delay_ms, failure, failure code
local id, counted, max, delay = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if get('state') ~= 'running' or get('token') ~= ARGV[2] then return 'stale' end
local now = now_ms()
if get('cancel_requested') == '1' then
  finish(id, now, 'cancelled', '', '')
elseif counted == '1' and tonumber(get('attempt')) >= max then
  finish(id, now, 'failed', ARGV[6], ARGV[7])
else
  if counted == '0' then redis.call('HINCRBY', job, 'attempt', -1) end
  requeue(id, now, ARGV[7], now + delay, delay > 0 and now + delay or nil)
end
return get('state')
