-- Keep a lease, tell the progress, learn of a cancel.
-- ARGV: id, token, lease_ms, progress ('' for none)
local id, lease, progress = ARGV[1], tonumber(ARGV[3]), ARGV[4]
if get('state') ~= 'running' or get('token') ~= ARGV[2] then return { 0, 0 } end
local is_cancelled = get('cancel_requested') == '1'
if not is_cancelled then
  local expiry = now_ms() + lease
  set('lease_until_ms', string.format('%.0f', expiry))
  redis.call('ZADD', open, expiry, id)
end
if progress ~= '' and progress ~= get('progress') then
  set('progress', progress)
  bump('progress')
end
return { 1, is_cancelled and 1 or 0 }
